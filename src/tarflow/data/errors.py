"""The one error of the data room, and its warning."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be read, or an option that they cannot honour; the message is one line for the user."""


class DataWarning(UserWarning):
    """Data that were read, though perhaps not as their owner thinks; the message is one line for the user."""
