"""Flows in the form that other libraries expect: `lazy` as zuko's are, and a module for each library that is asked for.

`tarflow.adapters.sbi` needs the extra `sbi`, and `tarflow.adapters.pyro` the extra `pyro`.
"""

from tarflow.adapters.lazy import LazyFlow as LazyFlow
from tarflow.adapters.lazy import lazy as lazy
