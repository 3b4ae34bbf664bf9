"""Text in the cells of a CSV file, such that every program reads the same."""

from __future__ import annotations

import unicodedata

_FORMULA = "=+-@＝＋－＠"  # some spreadsheets take the wide ones, too
_ENDS = "\x85\u2028\u2029"  # of lines, for some programs


def escaped(text: str) -> str:
    r"""`text` with every `%`, control character, end of a line, and byte that is no UTF-8 as %XX, as in a URL; and the
    first character where it would begin a formula, or a space at either end. Every program reads the same cells, and
    `os.fsdecode(urllib.parse.unquote_to_bytes(cell))` is the name again.

    >>> escaped("cat.png"), escaped("=1+1.png"), escaped("a\rb.png"), escaped("50%.png")
    ('cat.png', '%3D1+1.png', 'a%0Db.png', '50%25.png')
    """
    last = len(text) - 1
    return "".join(
        _encoded(c)
        if c == "%"
        or c in _ENDS
        or unicodedata.category(c) in ("Cc", "Cs")
        or (k == 0 and c in _FORMULA)
        or (k in (0, last) and c.isspace())
        else c
        for k, c in enumerate(text)
    )


def _encoded(character: str) -> str:
    of_bytes = "\udc80" <= character <= "\udcff"  # what Python has for bytes that are no UTF-8
    return "".join(
        f"%{byte:02X}" for byte in character.encode(errors="surrogateescape" if of_bytes else "surrogatepass")
    )
