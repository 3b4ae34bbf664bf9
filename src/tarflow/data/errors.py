"""The one error of the data room."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be read, or an option that they cannot honour; the message is one line for the user."""
