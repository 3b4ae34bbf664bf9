"""The one error of the data room, its warning, and the check that raises it before a small file becomes a large one."""

from __future__ import annotations

UNPACKED_RATIO = 100  # zeros alone come to 200 and more with deflate; images come to a few
UNPACKED_BYTES = 1 << 29  # that anything may unpack to


class DataError(ValueError):
    """Data that cannot be read, or an option that they cannot honour; the message is one line for the user."""


class DataWarning(UserWarning):
    """Data that were read, though perhaps not as their owner thinks; the message is one line for the user."""


def check_unpacked(what: str, packed: int, unpacked: int) -> None:
    """Raise `DataError` that begins with `what` where so few bytes unpack to so many, before they do."""
    if unpacked > UNPACKED_BYTES and unpacked > UNPACKED_RATIO * packed:
        raise DataError(
            f"{what}: {packed} bytes that would unpack to {unpacked}, as no images do; if these do, store them unpacked"
        )
