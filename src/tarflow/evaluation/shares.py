"""The standard error of a share, such as an accuracy, at the ends of its range too."""

from __future__ import annotations

import math


def standard_error(variance: float) -> float:
    """√variance of a share as estimated from a sample; NaN where that is 0.

    A share of all, or of none, has no scatter within its sample, and no estimate that is made of it can tell by how
    much it is off. It is not exact for that: of n images that were all right, 3/n may be wrong (at 95 %).

    >>> standard_error(0.04), standard_error(0.0)
    (0.2, nan)
    """
    return math.sqrt(variance) if variance > 0 else math.nan
