"""What is kept is what was kept, or nothing; and where nothing can be kept, a line says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tarflow import digests


def test_what_is_kept_comes_back_and_no_flipped_bit_goes_unseen(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a"
    assert digests.kept(file) is None
    digests.keep(file, b"contents")
    assert digests.kept(file) == b"contents"
    data = file.read_bytes()
    for place in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        file.write_bytes(flipped)
        assert digests.kept(file) is None
    for end in range(len(data)):
        file.write_bytes(data[:end])
        assert digests.kept(file) is None


def test_a_table_comes_back_through_json_and_no_other_does() -> None:
    table = {"key": {"a": 1, "b": [0.1, None, "σ"]}, "scores": [1e300, -2, float("inf")]}
    text = json.dumps(digests.sealed(table))
    assert digests.unsealed(json.loads(text)) == table
    others = (text.replace("0.1", "0.2"), text.replace('"a"', '"c"'), json.dumps(table), "[]", "{}", "[[[]]]")
    for other in others:
        assert digests.unsealed(json.loads(other)) is None


def test_where_nothing_can_be_kept_a_line_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    reached = False
    with pytest.warns(digests.CacheWarning, match=r"cache: (Not a directory|File exists); nothing is kept there"):
        with digests.optional(tmp_path / "cache"):
            digests.keep(tmp_path / "file" / "a" / "b", b"contents")
        reached = True
    assert reached
