"""Package definition; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# Read, not imported: the package's own imports are not there yet when it is built.
VERSION = re.search(
  r"^__version__ = '(.+)'$", (ROOT / 'fedmedjax' / '__init__.py').read_text(), re.MULTILINE)[1]

setup(
  name='fedmedjax',
  version=VERSION,
  description='Federated low-rank tuning of language models for clinical information extraction',
  long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  author='the fedmedjax authors',
  license='Apache-2.0',
  license_files=['LICENSE'],
  classifiers=[
    'Development Status :: 4 - Beta',
    'Intended Audience :: Healthcare Industry',
    'Intended Audience :: Science/Research',
    'Operating System :: POSIX',
    'Programming Language :: Python :: 3',
    'Programming Language :: Python :: 3 :: Only',
    'Topic :: Scientific/Engineering :: Artificial Intelligence',
  ],
  python_requires='>=3.11',
  # Without the folder configs/: users have one of that name.
  packages=find_packages(include=['fedmedjax', 'fedmedjax.*']),
  entry_points={'console_scripts': [
    'fedmedjax = fedmedjax.main:main',
    'fedmedjax-compare = fedmedjax.compare.__main__:main',
    'fedmedjax-predict = fedmedjax.predict.__main__:main',
    'fedmedjax-describe = fedmedjax.describe:main',
    'fedmedjax-audit = fedmedjax.audit.__main__:main',
    'fedmedjax-sweep = fedmedjax.sweep.__main__:main',
  ]},
  package_data={'fedmedjax': ['**/*.toml', '*/templates/*']},
  # Lower bounds are what scripts/lowest.sh installs and tests; there are no upper ones.
  install_requires=[
    'jax>=0.8', 'flax>=0.12', 'optax>=0.2.6', 'orbax-checkpoint>=0.12', 'transformers>=5',
    'ml-collections>=1.1', 'absl-py>=2.1', 'tokenizers>=0.22.1', 'safetensors>=0.6.1',
    'gguf>=0.17', 'huggingface-hub>=1.3', 'ml-dtypes>=0.5', 'rich>=13.9', 'numpy>=2',
    'scipy>=1.13', 'matplotlib>=3.9', 'jinja2>=3.1', 'markupsafe>=2.1', 'regex>=2024.11.6',
  ],
  extras_require={
    # Baselines behind an endpoint: regimes api and api:MODEL of compare.
    'api': ['openai>=2'],
    # Sites in the format 'datasets': saved data sets and Parquet files.
    'datasets': ['datasets>=4'],
    # Sites in the format 'uima', and predict's formats uima_xmi and uima_json.
    'uima': ['dkpro-cassis>=0.12'],
    # fedmedjax.load_results, and the tables that sweep writes.
    'results': ['pandas>=2.2.2', 'pyarrow>=17'],
    # config.log.trackers beside 'tensorboard'; MLflow's database in the run's folder needs the two.
    'trackers': ['wandb>=0.31', 'mlflow-skinny>=3.17', 'sqlalchemy>=2', 'alembic', 'trackio>=0.43'],
    # The metric 'rouge_l' of config.eval.metrics.
    'rouge': ['rouge-score>=0.1.2'],
    # Sites and server of a study between hospitals over Flower: docs/deployment.md.
    'deploy': ['flwr>=1.42'],
    # Runs with config.privacy.unit: accountants, and matrices of correlated noise.
    'privacy': ['dp-accounting>=0.6.0', 'jax-privacy>=2.0.0'],
    # Peers of scripts/bench_*.py.
    'bench': ['peft', 'torch', 'flwr[simulation]>=1.42'],
    # Oracles of the tests; the package never imports torch. This build of it is CPU only on
    # machines that serve one, and the tests need no more.
    # openai, fastapi and uvicorn are what `transformers serve` needs.
    'test': [
      'pytest', 'pytest-xdist', 'hypothesis', 'ruff', 'mypy', 'torch==2.13.0', 'peft', 'qwix',
      'flwr[simulation]>=1.42', 'openai>=2', 'fastapi', 'uvicorn', 'bioc', 'seqeval', 'nervaluate',
      'nbclient', 'ipykernel',
      'datasets>=4', 'dkpro-cassis>=0.12', 'rouge-score>=0.1.2', 'tensorboardX',
      'dp-accounting>=0.6.0', 'jax-privacy>=2.0.0', 'pandas', 'pyarrow'],
  },
)
