"""Flows in the form that other libraries expect: `lazy` as zuko's are, and a module for each library that is asked for.

`tarflow.adapters.sbi` and `tarflow.adapters.pyro` need the extra `sbi`.
"""

from tarflow.adapters.lazy import LazyFlow as LazyFlow
from tarflow.adapters.lazy import lazy as lazy
