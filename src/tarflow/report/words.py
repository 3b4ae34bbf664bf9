"""How numbers and times are put into words."""

from __future__ import annotations

import math
from collections.abc import Sequence


def quoted(mean: float, error: float) -> str:
    """A number with its standard error, or alone where there is none.

    >>> quoted(2.31516, 0.01156), quoted(2.0, float("nan"))
    ('2.315 ± 0.012', '2.000')
    """
    return f"{mean:.3f} ± {error:.3f}" if math.isfinite(error) else f"{mean:.3f}"


def plural(count: int, noun: str) -> str:
    """A count of things.

    >>> plural(1, "layer"), plural(3, "layer"), plural(2, "class")
    ('1 layer', '3 layers', '2 classes')
    """
    ending = "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{'' if count == 1 else ending}"


def numbered(numbers: Sequence[int]) -> str:
    """Which of a row, in rising order: three and more in succession by their ends, and of many groups the last.

    >>> numbered([1, 2]), numbered([0, 2, 3, 4]), numbered([0, 2, 4, 6, 8, 10])
    ('1, 2', '0, 2 to 4', '0, 2, 4, …, 10')
    """
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    words = [f"{group[0]} to {group[-1]}" if len(group) > 2 else ", ".join(map(str, group)) for group in groups]
    return ", ".join(words if len(words) <= 4 else [*words[:3], "…", words[-1]])


def short(count: int) -> str:
    """A count for a label: 50.6k, 463M.

    >>> short(912), short(50_560), short(463_000_000)
    ('912', '50.6k', '463M')
    """
    if count < 1000:
        return str(count)
    power = min(int(math.log10(count)) // 3, 3)
    return f"{count / 1000**power:.3g}{('k', 'M', 'G')[power - 1]}"


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(36.3), duration(151.7), duration(8000), duration(400_000)
    ('36 s', '2 min 32 s', '2 h 13 min', '4 d 15 h')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"
