"""Has a source changed? A digest of what the system, or another keeper, says of its files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from tarflow.data.records import Source


def files_digest(source: Source) -> str:
    """Of the names and sizes of the files, and of their times of change, in which copies of a set differ.

    Of a file elsewhere it has the identity that its keeper gives it. A source that lies in no file (the embedded
    digits) has a digest of its pixels.
    """
    digest = hashlib.blake2b(digest_size=16)
    records = (entry for part in source.parts for entry in zip(part.names, part, strict=True))
    for name, content in ((path.name, path) for path in source.files) if source.files else records:
        try:
            if isinstance(content, Path):
                status = os.stat(content)
                found = f"{status.st_size}\0{status.st_mtime_ns}"
            elif isinstance(content, np.ndarray):
                found = f"{content.shape}\0{hashlib.blake2b(content.tobytes(), digest_size=16).hexdigest()}"
            else:
                found = content.identity() if hasattr(content, "identity") else repr(content)
        except OSError as error:  # a broken link is a bad record, not the end
            found = error.strerror or str(error)
        digest.update(f"{name}\0{found}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
