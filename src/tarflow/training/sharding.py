"""Weights that are split over the ranks (FSDP2): how a flow is sharded, and how what is sharded is put together again.

A file never holds a shard: checkpoints are gathered on saving and split on loading, so that they do not depend on how
many ranks wrote them. torch.distributed.tensor is imported inside the functions: it takes a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from tarflow.model.sequence import SequenceFlow

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Flow = TypeVar("Flow", bound=SequenceFlow)


def shard(flow: Flow, mesh: DeviceMesh) -> Flow:
    """Split the weights of `flow` over the ranks of `mesh`, in place, onto its devices: a Transformer layer at a time.

    What is not in a layer (projections, positions, class embeddings) is gathered for the whole of a pass: a block calls
    its layers as modules, but is itself not called as one. Buffers are not split.
    """
    from torch.distributed.fsdp import fully_shard

    for block in flow.blocks:
        for layer in block.layers:
            fully_shard(layer, mesh=mesh)
    fully_shard(flow, mesh=mesh)
    return flow


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, on the same memory; another tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds a part of the tensor only."""
    return hasattr(tensor, "to_local")


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor, gathered: all ranks must call it. Another tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gathered(state: Any, keep: bool) -> Any:
    """Nested dictionaries and lists with every sharded tensor gathered, and on the CPU; all ranks must call it.

    One tensor at a time is whole on a device. Where not to `keep` it, as on all ranks but the one that writes, None
    takes its place.
    """
    if isinstance(state, Tensor):
        if not is_sharded(state):
            return state
        tensor = whole(state)
        return tensor.cpu() if keep else None
    if isinstance(state, Mapping):
        return {name: gathered(value, keep) for name, value in state.items()}
    if isinstance(state, list):
        return [gathered(value, keep) for value in state]
    return state


def split_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor that every rank has, where `like` is sharded and has its shape."""
    if not is_sharded(like) or like.shape != tensor.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)  # nobody sends anything


def split_weights(tensors: Mapping[str, Tensor], flow: SequenceFlow) -> dict[str, Tensor]:
    """Whole tensors by name, as `flow` holds those of the same name."""
    have = flow.state_dict()
    return {name: split_like(tensor, have[name]) if name in have else tensor for name, tensor in tensors.items()}


def split_moments(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The `state_dict` of an optimizer of whole weights, as `optimizer` holds its own."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not any(map(is_sharded, parameters)):
        return state
    moments = {
        index: {k: split_like(v, parameters[index]) if isinstance(v, Tensor) else v for k, v in entry.items()}
        for index, entry in state["state"].items()
    }
    return state | {"state": moments}


def assembled(flow: Flow) -> Flow:
    """A flow of whole weights, to score and to sample with: `flow` itself where nothing is sharded, else a copy.

    All ranks must call it, and each gets the whole.
    """
    tensors = flow.state_dict()
    if not any(map(is_sharded, tensors.values())):
        return flow
    with torch.no_grad():
        copied = type(flow)(flow.config, device="meta")
    copied.load_state_dict({name: whole(tensor) for name, tensor in tensors.items()}, assign=True)
    return copied.eval().requires_grad_(False)
