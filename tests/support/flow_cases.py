"""One table of flows that feeds every law in tests/model and tests/sampling.

To add a case, add a line to `CASES`, or to `SEQUENCES` or `VECTORS` for flows on what are no images: a name that says
what is special about it, and the fields in which it differs from `BASE`, `SEQUENCE` or `VECTOR`. Every law then holds
it to account; nothing else is to be written. Keep it tiny: T·D below about 30.

The flows are randomised. The output layers of a new flow are zero, which makes every block constant and every law true
for free, and its positions and classes are so small that leaving them out would go unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from tarflow import SequenceConfig, SequenceFlow, TarFlow, TarFlowConfig, VectorConfig, VectorFlow
from tarflow.model.condition import NULL_CLASS, make_condition
from tarflow.model.context import Context
from tarflow.model.flow import sequence_config
from tarflow.model.transform import Transform, make_transform

Flow = TypeVar("Flow", bound=SequenceFlow)

BASE: dict[str, Any] = {  # T=4, D=4
    "image_size": 4,
    "channels": 1,
    "patch_size": 2,
    "width": 16,
    "head_dim": 8,
    "layers": (1, 1),
    "log_scale_bound": None,  # the wilder kind
}

CASES: dict[str, dict[str, Any]] = {
    "unconditional": {},
    "conditional": {"num_classes": 3},
    "additive": {"transform": "additive", "layers": (1, 1, 1)},
    "additive_conditional": {"transform": "additive", "num_classes": 3},
    "bounded": {"log_scale_bound": 0.6, "layers": (2, 1)},
    "bounded_conditional": {"log_scale_bound": 0.6, "num_classes": 3},
    "one_class": {"num_classes": 1},
    "two_tokens": {"image_size": (2, 4), "num_classes": 2},  # T=2: attention over a single key
    "one_token_a_row": {"image_size": (6, 2)},
    "one_row": {"image_size": (2, 8), "num_classes": 2},
    "non_square": {"image_size": (4, 6), "num_classes": 2},
    "one_block": {"layers": (2,), "num_classes": 3},
    "unequal_depths": {"layers": (3, 1, 2), "num_classes": 2},
    "rotary": {"rotary": True, "image_size": (4, 6), "num_classes": 2},
    "rotary_additive": {"rotary": True, "transform": "additive", "head_dim": 4},
    "four_channels": {"image_size": (2, 3), "channels": 4, "patch_size": 1, "num_classes": 2},
    "start_token": {"start_token": True, "num_classes": 3},
    "start_token_rotary": {"start_token": True, "rotary": True, "image_size": (4, 6), "layers": (1, 2)},
    "start_token_additive": {"start_token": True, "transform": "additive"},
    "first_block_additive": {"transforms": ("additive",), "layers": (1, 1, 1), "num_classes": 2},
    "by_number": {"transforms": ("affine-by-number",), "num_classes": 3},
    "mixed": {"transform": "affine-mixed", "num_classes": 2, "log_scale_bound": 0.6},
    "spline": {"transform": "spline", "bins": 3, "interval": 2.0, "log_scale_bound": 0.6, "num_classes": 2},
    "spline_first": {"transforms": ("spline",), "bins": 5, "start_token": True, "log_scale_bound": 0.6},
    "causal": {"order": "causal", "start_token": True, "num_classes": 2, "log_scale_bound": 0.6},
    "image_given_an_image": {"condition": "image:2:4:2:2", "transforms": ("affine-by-number",), "log_scale_bound": 0.6},
    "image_given_a_map": {
        **{"condition": "aligned-image:2:2:3:1", "image_size": (4, 6), "rotary": True, "log_scale_bound": 0.6}
    },
    "image_given_numbers": {"condition": "vector:3", "start_token": True, "image_size": (2, 4)},
    "image_given_all": {
        **{"condition": "image:1:2:4:2+vector:2", "order": "causal", "start_token": True, "rotary": True},
        **{"transforms": ("spline-mixed",), "bins": 3, "log_scale_bound": 0.6},
    },
    "one_pixel_patches": {"image_size": (3, 2), "patch_size": 1, "head_dim": 16, "expansion": 1},  # D=1, one head
}

SEQUENCE: dict[str, Any] = {  # T=4, D=3
    **{"tokens": 4, "dim": 3, "width": 16, "head_dim": 8, "layers": (1, 1), "log_scale_bound": None},
    "standardise": False,
}

SEQUENCES: dict[str, dict[str, Any]] = {  # flows on sequences: what images do not have
    "permuted": {"orders": ((2, 0, 3, 1), (1, 3, 0, 2))},
    "random_orders": {"orders": ("random:1", "flipped", "random:2"), "layers": (1, 2, 1), "condition": "classes:3"},
    "permuted_additive": {"orders": ("random:3", "random:4"), "transforms": ("additive", "additive")},
    "permuted_rotary": {
        **{"tokens": 6, "lattice": (2, 3), "rotary": True, "orders": ("random:5", (5, 0, 4, 1, 3, 2))},
        "condition": "classes:2",
    },
    "rotary_line": {"tokens": 5, "rotary": True},
    "rotary_box": {
        **{"tokens": 6, "lattice": (1, 3, 2), "rotary": True, "width": 24, "head_dim": 12, "log_scale_bound": 0.6},
    },
    "permuted_start": {"start_token": True, "orders": ((2, 0, 3, 1), "random:7"), "condition": "classes:3"},
    "one_token": {"start_token": True, "tokens": 1, "dim": 4, "condition": "classes:2"},
    "by_number_from_a_start": {
        **{"transforms": ("affine-by-number", "additive-by-number"), "orders": ("random:8", "raster")},
        **{"start_token": True, "tokens": 3, "condition": "classes:2", "log_scale_bound": 0.6},
    },
    "two_transforms": {"transforms": ("additive", "affine"), "log_scale_bound": 0.6, "condition": "classes:2"},
    "spline_last": {"transforms": ("affine", "spline"), "bins": 4, "interval": 3.0, "condition": "classes:3"},
    "spline_by_number": {"transforms": ("spline-by-number", "affine"), "bins": 3, "start_token": True},
    "spline_mixed": {"transforms": ("spline-mixed", "additive-mixed"), "bins": 3, "start_token": True},
    "given_numbers": {"condition": "vector:2", "orders": ("raster", "random:12"), "log_scale_bound": 0.6},
    "given_tokens": {"condition": "tokens:3:2", "orders": ((2, 0, 3, 1), "raster"), "layers": (2, 1)},
    "given_tokens_rotary": {
        **{"condition": "tokens:2:1", "tokens": 6, "lattice": (2, 3), "rotary": True, "start_token": True},
        **{"orders": ("random:13", "flipped"), "log_scale_bound": 0.6},
    },
    "given_one_token": {"condition": "tokens:1:3", "tokens": 1, "dim": 4, "start_token": True},
    "given_each_its_own": {
        **{"condition": "classes:2+aligned:4:1+tokens:2:1", "start_token": True, "orders": ("random:15", "flipped")},
        **{"transforms": ("spline", "affine"), "bins": 3, "log_scale_bound": 0.6},
    },
    "given_several": {
        **{"condition": "classes:2+vector:2+tokens:2:2+image:1:2:4:2", "transforms": ("spline", "affine"), "bins": 3},
        **{"log_scale_bound": 0.6},
    },
    "given_all_from_a_start": {
        **{"condition": "classes:2+vector:2+tokens:2:1", "tokens": 3, "dim": 2, "start_token": True, "bins": 3},
        **{"transforms": ("spline-by-number", "affine-mixed"), "orders": ("random:14", (2, 0, 1)), "standardise": True},
        **{"support": ("positive", "real"), "log_scale_bound": 0.6},
    },
    "affine_on_a_followed_variance": {"base": "followed", "orders": ("raster", "random:6")},
    "additive_on_a_fixed_variance": {"base": "normal", "transforms": ("additive",) * 2, "dim": 1},
    "start_token_rotary_spline": {
        **{"start_token": True, "tokens": 4, "lattice": (2, 2), "rotary": True, "transforms": ("spline", "additive")},
        **{"orders": ("random:12", "flipped"), "log_scale_bound": 0.6, "bins": 3},
    },
    "standardised": {"standardise": True, "orders": ("random:9", "flipped"), "log_scale_bound": 0.6},
    "supports": {
        **{"standardise": True, "support": ("interval:-1:3", "positive", "real"), "start_token": True},
        **{"log_scale_bound": 0.6, "orders": ("random:10", "random:11")},
    },
}

VECTOR: dict[str, Any] = {"dim": 4, "width": 16, "head_dim": 8, "layers": (1, 1), "bins": 3, "log_scale_bound": 0.4}

VECTORS: dict[str, dict[str, Any]] = {
    "vector": {"condition": "classes:2"},
    "vector_in_pairs": {"dim": 8, "tokens": 4, "transform": "affine-by-number", "orders": ("raster", "raster")},
    "vector_of_supports": {"support": ("positive", "real", "real", "interval:0:1"), "orders": ("random:1", "random:2")},
    "vector_given_numbers": {
        **{
            "dim": 6,
            "tokens": 3,
            "condition": "vector:3",
            "transform": "spline-mixed",
            "orders": ("random:3", "raster"),
        },
        **{"support": ("positive", "real", "real", "interval:0:1", "real", "real")},
    },
    "bounded_vector": {"support": "interval:2:5", "standardise": False, "transform": "affine", "start_token": False},
}

every_case = pytest.mark.parametrize("name", CASES)
every_flow = pytest.mark.parametrize("name", [*CASES, *SEQUENCES, *VECTORS])

KINDS = (  # few flows, in which every kind of event, condition, order, transform, base and support is (test_cases.py)
    *("conditional", "additive", "rotary", "start_token_rotary", "mixed", "image_given_an_image", "image_given_all"),
    *("image_given_a_map", "given_each_its_own"),
    *("random_orders", "permuted_additive", "given_tokens_rotary", "spline_mixed", "given_several", "standardised"),
    *("by_number_from_a_start", "given_all_from_a_start", "affine_on_a_followed_variance", "supports", "one_token"),
    *("vector", "vector_in_pairs", "vector_given_numbers", "bounded_vector"),
)
every_kind = pytest.mark.parametrize("name", KINDS)


def config_of(name: str) -> TarFlowConfig:
    return TarFlowConfig(**{**BASE, **CASES[name]})


def sequence_of(name: str) -> SequenceConfig:
    """The architecture of any case as that of a flow on sequences."""
    if name in VECTORS:
        return VectorConfig(**VECTOR | VECTORS[name]).sequence
    return SequenceConfig(**SEQUENCE | SEQUENCES[name]) if name in SEQUENCES else sequence_config(config_of(name))


def transform_of(name: str) -> Transform:
    """A transform of the table, on tokens of three numbers and without a bound."""
    return make_transform(name, SequenceConfig(**SEQUENCE))


def names(*, sequences: bool = False, **conditions: bool) -> list[str]:
    """Cases for which the properties hold: `names(conditional=True, long=True)`; `long` is T ≥ 3."""

    def properties(config: SequenceConfig) -> dict[str, bool]:
        classes = make_condition(config.condition).size
        return {
            "given": bool(make_condition(config.condition)) and classes != 1,
            "conditional": classes > 1,
            "labelled": classes > 0,
            "bounded": config.log_scale_bound is not None,
            "long": config.tokens >= 3,
        }

    known = [*CASES, *SEQUENCES, *VECTORS] if sequences else CASES
    return [
        name for name in known if all(properties(sequence_of(name))[key] == want for key, want in conditions.items())
    ]


def in_one_order(name: str) -> Any:
    """A flow of the table, all of whose blocks walk forwards."""
    bound = {} if sequence_of(name).log_scale_bound is None and "additive" in name else {"log_scale_bound": 0.6}
    orders = {"order": "causal"} if name in CASES else {"orders": ("raster",) * len(sequence_of(name).layers)}
    return build(name, **orders, **bound)


def padded() -> list[str]:
    """Cases whose tokens may be padding, three of them at least."""
    found = [name for name in names(sequences=True, long=True) if name in SEQUENCES]
    return [name for name in found if sequence_of(name).start_token]


def masks(flow: SequenceFlow) -> Tensor:
    """All there; the first ones; some in between; one; none."""
    count = flow.sequence.tokens
    mask = torch.zeros(5, count, dtype=torch.bool)
    mask[0] = True
    mask[1, :-1] = True
    mask[2, ::2] = True
    mask[3, 1] = True
    return mask


def under(mask: Tensor, x: Tensor, value: float) -> Tensor:
    """x with `value` in place of what is padding."""
    return torch.where(mask.unsqueeze(2), x, value)


def _rank(name: str) -> int:
    return 0 if name.endswith("position") else 1 if "embedding" in name else 2


def randomise(flow: Flow, seed: int = 0) -> Flow:
    """Weights under which every part of the network matters, and log-scales are of the order of 0.5."""
    generator = torch.Generator().manual_seed(seed)

    def normal_(tensor: Tensor, std: float, mean: float = 0.0) -> None:
        tensor.copy_(mean + std * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))

    with torch.no_grad():
        # Block by block, the tables first: cases keep their numbers when a module moves within a block.
        named = sorted(flow.named_parameters(), key=lambda item: (item[0].split(".")[1], _rank(item[0])))
        for name, parameter in named:
            if name.endswith("norm.weight") or name.endswith("mlp.0.weight"):
                normal_(parameter, 0.2, mean=1.0)
            elif parameter.ndim == 1:
                normal_(parameter, 0.2)
            elif "proj_out" in name:
                normal_(parameter, 0.35 * parameter.shape[1] ** -0.5)
            elif "qkv" in name:  # sharp attention, so that masks and temperatures show
                normal_(parameter, 1.5 * parameter.shape[1] ** -0.5)
            elif name.endswith(("position", "classes", "null", "embedding.places")):
                normal_(parameter, 0.7)
            else:
                normal_(parameter, 0.7 * parameter.shape[1] ** -0.5)
        if flow.base.follows:
            normal_(flow.base.variance, 0.3)
            flow.base.variance.exp_()
        for buffer_name, buffer in (*flow.event.named_buffers(), *flow.conditions.named_buffers()):
            normal_(buffer, 0.3)
            if buffer_name.endswith("deviation"):
                buffer.exp_()
    return flow


def build(name: str, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> Any:
    """A randomised flow of the table, or a variation of one; the same at every call."""
    if name in SEQUENCES:
        flow = SequenceFlow(SequenceConfig(**{**SEQUENCE, **SEQUENCES[name], **changes}))
    elif name in VECTORS:
        flow = VectorFlow(VectorConfig(**{**VECTOR, **VECTORS[name], **changes}))
    else:
        flow = TarFlow(TarFlowConfig(**{**BASE, **CASES[name], **changes}))
    return randomise(flow.to(dtype), seed).requires_grad_(True)


def images(flow: SequenceFlow, count: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """What the flow gives a density to: images, sequences or vectors, within their support."""
    shape = (count, *flow.event.shape)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x if flow.event.preprocessing is None else flow.event.preprocessing.inverse(x).detach()).to(dtype)


def latents(flow: SequenceFlow, count: int, seed: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    shape = (count, flow.sequence.tokens, flow.sequence.dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def labels(flow: SequenceFlow, count: int) -> Any:
    """Values of the condition. All classes and the null class in turn, or numbers, null in every third row.

    None without a condition; of several, values that are null in different rows.
    """
    values = []
    for place, part in enumerate(getattr(flow.conditions, "parts", [flow.conditions])):
        turn = torch.arange(place, place + count)
        if part.size:
            cycle = turn % (part.size + 1)
            values.append(torch.where(cycle == part.size, NULL_CLASS, cycle))
        elif part:
            generator = torch.Generator().manual_seed(place)
            numbers = torch.randn(count, *part.value_shape, generator=generator, dtype=torch.float64)
            values.append(part.drop(numbers, turn % 3 == 2))
    return tuple(values) if len(values) > 1 else values[0] if values else None


def row_of(value: Any, row: int) -> Any:
    """The value of one row, as a batch of one."""
    return (
        tuple(row_of(part, row) for part in value)
        if isinstance(value, tuple)
        else value
        if value is None
        else value[row : row + 1]
    )


def assert_close(got: Tensor, want: Tensor, tolerance: float = 1e-10) -> None:
    """Equal in shape, dtype and, absolutely and relatively, in value."""
    torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


def tensors_of(value: Any) -> list[Tensor]:
    """A tensor, or those of a value of several conditions or of a context, which are not None."""
    parts = vars(value).values() if isinstance(value, Context) else value if isinstance(value, tuple) else (value,)
    return [part for part in parts if part is not None]


@contextmanager
def unchanged(*values: Any) -> Iterator[None]:
    """The block inside writes to none of the tensors."""
    before = [(t, t.clone(), t._version) for value in values for t in tensors_of(value)]
    yield
    for tensor, values, version in before:
        assert torch.equal(tensor.nan_to_num(1e9), values.nan_to_num(1e9)), "an input was written to"  # NaN is null
        assert tensor._version == version, "an input was written to and restored"


def repeated(step: Callable[[], None]) -> Callable[[], None]:
    """What a GPU does with a step, on a CPU: take it, and give back what takes it again."""
    step()
    return step
