"""What unpacks to a great many times its size holds no images: it is refused before it is unpacked."""

from __future__ import annotations

from tarflow.data.errors import DataError

RATIO = 100  # zeros alone come to 200 and more with deflate
ROOM = 1 << 29  # bytes that anything may unpack to


def check_unpacked(what: str, packed: int, unpacked: int) -> None:
    """Raise `DataError` that begins with `what` where so many bytes are made of so few."""
    if unpacked > ROOM and unpacked > RATIO * packed:
        raise DataError(
            f"{what}: {packed} bytes that would unpack to {unpacked}, as no images do; if these do, store them unpacked"
        )
