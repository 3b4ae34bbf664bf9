"""The table of flows that the laws go over has every kind of part, and so has the short list of it."""

from __future__ import annotations

from itertools import chain

from flow_cases import CASES, KINDS, SEQUENCES, VECTORS, build, padded, sequence_of
from tarflow.architecture import BY_NUMBER, CONDITIONS, MIXED, TRANSFORMS, condition_parts, plain
from tarflow.model.base import BASES
from tarflow.model.order import ORDERS
from tarflow.model.support import SUPPORTS


def kinds(names: list[str]) -> set[str]:
    """What the flows are made of, in words."""
    found: set[str] = set()
    for name in names:
        config, event = sequence_of(name), build(name).event
        found |= {f"transform {plain(each)}" for each in config.transforms}
        found |= {mark for each in config.transforms for mark in (BY_NUMBER, MIXED) if mark in each}
        found |= {f"condition {part}" for part, _ in condition_parts(config.condition)} | {f"base {config.base}"}
        found |= {"several conditions"} if "+" in config.condition else set()
        found |= {f"order {o.partition(':')[0]}" if isinstance(o, str) else "permutation" for o in config.orders}
        found |= {"one order"} if len({*config.orders}) == 1 and len(config.orders) > 1 else set()
        found |= {"start token"} if config.start_token else {"no start token"}
        found |= {"rotary"} if config.rotary else set()
        found |= {"bounded" if config.log_scale_bound is not None else "unbounded", event.meaning}
        numbers = event.preprocessing
        supports = numbers.names if numbers is not None else ("real",)
        found |= {f"support {each.partition(':')[0]}" for each in supports}
        found |= {"standardised"} if numbers is not None and numbers.standardise else set()
    return found


EVERY = {
    *(f"transform {name}" for name in TRANSFORMS),
    *(f"condition {name}" for name in CONDITIONS),
    *(f"order {name}" for name in ORDERS),
    *(f"base {name}" for name in BASES),
    *(f"support {name}" for name in SUPPORTS),
    *(BY_NUMBER, MIXED, "several conditions", "permutation", "one order", "start token", "no start token", "rotary"),
    *("bounded", "unbounded", "images", "tokens", "vectors", "standardised"),
}


def test_every_part_of_a_flow_is_in_the_table_and_in_the_short_list() -> None:
    assert EVERY - kinds(list(chain(CASES, SEQUENCES, VECTORS))) == set()
    assert EVERY - kinds(list(KINDS)) == set()


def test_padding_is_tried_with_what_may_be_padded() -> None:
    missing = EVERY - kinds(padded())
    assert missing <= {
        "condition image",
        "condition aligned-image",
        "base followed",
        "one order",
        "no start token",
        "images",
        "vectors",
    }, missing
