"""What is printed, and to whom: messages that nobody reads stop nothing, results that nobody gets are an error.

Whoever reads the standard error may go away (`2>&1 | head`, a closed terminal), its disk may be full, or it may be
closed from the start. A training that has run for days does not end of that. Results go to the standard output: there a
reader who leaves ends the command as everywhere (`BrokenPipeError`), and a disk that is full is said.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

# Letters of our help texts and messages, for outputs that have none of them (cp1252, ascii).
SPELLED = {"σ": "sigma", "ε": "eps", "∇": "grad", "²": "^2", "·": "*", "…": "...", "±": "+-", "×": "x", "é": "e"}


class Output:
    """A text stream of which an OSError is handled where it happens. What else a stream has is that of the stream."""

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
            nowhere = os.open(os.devnull, os.O_WRONLY)  # where all goes from now on, the last flush of Python too
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        self._failed(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _forget(error: OSError) -> None:
    """There is nobody to whom one could say that nobody can be told."""


def _name(error: OSError) -> None:
    if isinstance(error, BrokenPipeError) or error.errno is None:
        raise error
    raise OSError(error.errno, os.strerror(error.errno), "standard output") from None


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Let `sys.stdout` and `sys.stderr` behave as the first lines of this file say, until the block ends.

    One that is closed is nowhere: Python has None in its place, which `print` takes for the standard output.
    """
    stdout, stderr = sys.stdout, sys.stderr
    with contextlib.ExitStack() as stack:
        for stream, errors in ((stdout, RESULTS), (stderr, MESSAGES)):
            if hasattr(stream, "reconfigure"):
                stack.callback(stream.reconfigure, errors=stream.errors)
                stream.reconfigure(errors=errors)

        def there(stream: TextIO | None) -> TextIO:
            return stream or stack.enter_context(open(os.devnull, "w", encoding="utf-8"))

        sys.stdout, sys.stderr = Output(there(stdout), _name), Output(there(stderr), _forget)
        try:
            yield
        finally:
            sys.stderr.flush()
            sys.stdout, sys.stderr = stdout, stderr


def _write_somehow(error: UnicodeError, raw: bool) -> tuple[bytes, int]:
    """What stands for letters that an encoding has not: they are spelled, or escaped.

    The bytes of a file name that are no text are written as they are where `raw` says so: a result may be a path.
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
codecs.register_error(RESULTS, lambda error: _write_somehow(error, True))
codecs.register_error(MESSAGES, lambda error: _write_somehow(error, False))
