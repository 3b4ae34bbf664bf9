"""Standard streams: a message that cannot be written stops nothing, a result that cannot be written is an error.

The reader of the standard error may leave (`2>&1 | head`, a closed terminal), its disk may be full, or it may be closed
from the start. A training that has run for days does not end because of that. Results go to the standard output: if its
reader leaves, the command ends as programs do (`BrokenPipeError`), and a full disk is an error that names it.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

# Letters of our help texts and messages, for outputs whose encoding lacks them (cp1252, ascii).
SPELLED = {"σ": "sigma", "ε": "eps", "∇": "grad", "²": "^2", "·": "*", "…": "...", "±": "+-", "×": "x", "é": "e"}


class Output:
    """A text stream whose OSErrors go to `failed`; all other attributes are those of the stream that it wraps."""

    def __init__(self, stream: TextIO, failed: Callable[[OSError], None]) -> None:
        self._stream, self._failed = stream, failed

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._fail(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream without a descriptor
            nowhere = os.open(os.devnull, os.O_WRONLY)  # later output goes here, and the flush when Python ends
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        self._failed(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _ignore(error: OSError) -> None:
    """The standard error has failed: there is no place left to report that."""


def _raise_named(error: OSError) -> None:
    if isinstance(error, BrokenPipeError) or error.errno is None:
        raise error
    raise OSError(error.errno, os.strerror(error.errno), "standard output") from None


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Let `sys.stdout` and `sys.stderr` behave as the docstring of this module says, until the block ends.

    A closed stream is None in Python, which `print` would take for the standard output: it becomes `os.devnull`.
    """
    stdout, stderr = sys.stdout, sys.stderr
    with contextlib.ExitStack() as stack:
        for stream, errors in ((stdout, RESULTS), (stderr, MESSAGES)):
            if hasattr(stream, "reconfigure"):
                stack.callback(stream.reconfigure, errors=stream.errors)
                stream.reconfigure(errors=errors)

        def opened(stream: TextIO | None) -> TextIO:
            return stream or stack.enter_context(open(os.devnull, "w", encoding="utf-8"))

        sys.stdout, sys.stderr = Output(opened(stdout), _raise_named), Output(opened(stderr), _ignore)
        try:
            yield
        finally:
            sys.stderr.flush()
            sys.stdout, sys.stderr = stdout, stderr


def _replacement(error: UnicodeError, raw: bool) -> tuple[bytes, int]:
    """What is written for letters that an encoding lacks: they are spelled (`SPELLED`), or escaped.

    `raw` writes bytes of a file name that are no text as they are: a result may be a path.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    written = b""
    for letter in error.object[error.start : error.end]:
        if raw and "\udc80" <= letter <= "\udcff":
            written += bytes([ord(letter) - 0xDC00])
        else:
            written += SPELLED.get(letter, letter).encode("ascii", "backslashreplace")
    return written, error.end


RESULTS, MESSAGES = "tarflow.results", "tarflow.messages"
codecs.register_error(RESULTS, lambda error: _replacement(error, True))
codecs.register_error(MESSAGES, lambda error: _replacement(error, False))
