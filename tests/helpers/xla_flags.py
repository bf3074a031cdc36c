"""What XLA is told by tests, whose programs are compiled more than they are run."""

import importlib.metadata

# Code that LLVM does not polish; kernels by the older emitters, which take half as long to compile.
# The latter is a flag that later XLA does not know, and an unknown flag ends the process.
_EMITTERS = '--xla_cpu_use_fusion_emitters=false'
_LAST_WITH_EMITTERS = (0, 10)


def compiled_fast() -> str:
  """Flags that the installed jaxlib knows."""
  numbers = importlib.metadata.version('jaxlib').split('.')
  known = tuple(map(int, numbers[:2])) <= _LAST_WITH_EMITTERS
  return '--xla_backend_optimization_level=0' + (f' {_EMITTERS}' if known else '')
