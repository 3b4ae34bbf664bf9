"""The peak signal-to-noise ratio of images whose pixels span -1 to 1."""

from __future__ import annotations

import math

from torch import Tensor


def psnr(x: Tensor, clean: Tensor) -> float:
    """10 log10(2² / mean (x - clean)²), in dB, over all numbers of two tensors of one shape; inf where they are equal.

    >>> import torch
    >>> round(psnr(torch.full((3,), 0.2), torch.zeros(3)), 6)
    20.0
    """
    error = float((x - clean).double().square().mean())
    return 10 * math.log10(4 / error) if error else math.inf
