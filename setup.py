"""Package definition; tool settings are in pyproject.toml."""

from setuptools import find_packages, setup

setup(
  name='fedmedjax',
  version='0.1.0',
  description='Federated low-rank tuning of language models for clinical information extraction',
  python_requires='>=3.11',
  packages=find_packages(include=['fedmedjax', 'fedmedjax.*', 'configs']),
  package_data={'fedmedjax': ['**/*.toml', 'templates/*', 'page/templates/*']},
  install_requires=[
    'jax', 'flax', 'optax', 'orbax-checkpoint', 'transformers', 'ml-collections', 'absl-py',
    'tokenizers', 'safetensors', 'gguf', 'huggingface-hub', 'ml-dtypes', 'rich', 'numpy',
    'scipy', 'matplotlib', 'jinja2', 'markupsafe',
  ],
  extras_require={
    # Baselines behind an endpoint: regimes api and api:MODEL of compare.
    'api': ['openai'],
    # Sites in the format 'datasets': saved data sets and Parquet files.
    'datasets': ['datasets'],
    # Oracles of the tests; the package never imports torch. This build of it is CPU only on
    # machines that serve one, and the tests need no more.
    # openai, fastapi and uvicorn are what `transformers serve` needs.
    'test': [
      'pytest', 'pytest-xdist', 'hypothesis', 'ruff', 'torch==2.13.0', 'peft', 'qwix', 'flwr',
      'openai', 'fastapi', 'uvicorn', 'bioc', 'seqeval', 'nervaluate', 'datasets', 'tensorboardX'],
  },
)
