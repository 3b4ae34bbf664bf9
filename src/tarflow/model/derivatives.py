"""Second derivatives of the density, and forward mode: what attention's fast kernels do not have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def second_order() -> Iterator[None]:
    """Within it a flow can be differentiated twice, and in forward mode: attention is computed as mathematics says.

    PyTorch's fused kernels of attention know their first derivative, in reverse mode, and no other: without this a
    Hessian, a penalty on gradients (`create_graph=True`), `torch.func.jvp`, `jacfwd` and `hessian` end in "derivative
    for aten::_scaled_dot_product_… is not implemented". Its price is T² numbers a head that are kept. The flow has to
    be evaluated within it; where it is differentiated does not matter. Like torch's `sdpa_kernel`, which it is, it
    holds for the whole process.

    >>> import torch, tarflow
    >>> flow = tarflow.TarFlow(tarflow.TarFlowConfig(4, channels=1, patch_size=2, width=64, layers=(1, 1)))
    >>> with tarflow.second_order():
    ...     hessian = torch.func.hessian(lambda x: flow.log_prob(x.view(1, 1, 4, 4))[0])(torch.zeros(16))
    >>> hessian.shape
    torch.Size([16, 16])
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel  # here, because it imports torch's compiler

    with sdpa_kernel(SDPBackend.MATH):
        yield
