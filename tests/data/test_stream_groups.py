"""What a stream reads of its groups: some of all of them to learn the shape, and never more than it needs at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from tarflow.data import streamed
from tarflow.data.decode import Spec
from tarflow.data.errors import DataError
from tarflow.data.feed import Feed
from tarflow.data.records import Content, Group, Part
from tarflow.data.request import Request
from tarflow.data.streamed import StreamedSet, probe

ROWS = 5


class Groups:
    """Groups of five 2x2 images, the number of an image its value, which count how often each of them is read."""

    def __init__(self, count: int, bad: Sequence[int] = (), odd: dict[int, tuple[int, ...]] | None = None) -> None:
        self.reads, self.bad, self.odd = [0] * count, set(bad), odd or {}
        self.groups = tuple(Group(ROWS, lambda k=k: self._read(k)) for k in range(count))  # type: ignore[misc]

    def _read(self, group: int) -> Sequence[Content]:
        self.reads[group] += 1
        shape = self.odd.get(group, (1, 2, 2))
        return [
            DataError("no image") if number in self.bad else np.full(shape, number % 256, np.uint8)
            for number in range(group * ROWS, (group + 1) * ROWS)
        ]

    def part(self) -> Part:
        count = len(self.groups) * ROWS
        return Part("all", [str(k) for k in range(count)], None, lambda: iter(()), self.groups)

    def images(self, skip_bad: bool = False) -> StreamedSet:
        count = len(self.groups) * ROWS
        names, spec = [str(k) for k in range(count)], Spec((1, 2, 2), 256, None, None)
        rows, labels = torch.arange(count), torch.arange(count) % 7
        return StreamedSet("here", self.groups, rows, labels, names, spec, 256, tuple("abcdefg"), skip_bad, "digest")


@pytest.mark.parametrize("odd", [0, 39, 69])
def test_images_of_another_size_are_found_wherever_their_groups_lie(odd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "PROBES", 70)
    groups = Groups(70, odd={odd: (1, 3, 2)})
    with pytest.raises(DataError, match=r"here: holds images of 2x2 and 3x2 \(height x width\): give an image size"):
        probe("here", [groups.part()], 256, Request())


def test_colour_at_the_end_makes_all_of_it_colour_and_few_groups_tell() -> None:
    groups = Groups(320, odd=dict.fromkeys(range(250, 320), (3, 2, 2)))
    assert probe("here", [groups.part()], 256, Request()) == (3, 2, 2)
    assert streamed.PROBES <= sum(groups.reads) <= 2 * streamed.PROBES
    assert probe("here", [groups.part()], 256, Request(channels=1)) == (1, 2, 2)


def test_a_bad_record_is_no_shape() -> None:
    groups = Groups(2, bad=[0, 1, 5, 6, 7, 8, 9])
    assert probe("here", [groups.part()], 256, Request()) == (1, 2, 2)
    with pytest.raises(DataError, match="none of the first images can be read: no image"):
        probe("here", [Groups(1, bad=range(5)).part()], 256, Request())


def test_an_epoch_reads_every_group_once_and_holds_two_windows_of_them() -> None:
    groups, window = Groups(24), 20
    feed = Feed(groups.images(), batch_size=10, seed=3, labelled=True, window=window)
    assert feed._stream is not None
    seen = []
    for step in range(12):
        seen += feed.batch(step)[0][:, 0, 0, 0].tolist()
        assert ROWS * len(feed._stream.held) <= 2 * window
    assert sorted(seen) == list(range(120)) and groups.reads == [1] * 24


def test_whatever_stands_in_for_a_bad_image_has_its_own_label_and_the_bad_one_is_named_once() -> None:
    groups = Groups(8, bad=[12, 13, 39])
    feed = Feed(groups.images(skip_bad=True), batch_size=40, seed=0, labelled=True, window=40)
    for _ in range(2):
        pixels, labels = feed.batch(0)
        assert labels is not None and torch.equal(labels, pixels[:, 0, 0, 0].long() % 7)
        counts = torch.bincount(pixels[:, 0, 0, 0].long(), minlength=40)
        assert counts.tolist() == [{12: 0, 13: 0, 14: 3, 39: 0, 35: 2}.get(k, 1) for k in range(40)]
    assert sorted(feed.newly_skipped()) == [(name, "no image") for name in ("12", "13", "39")]
    feed.batch(1)
    assert feed.newly_skipped() == []


def test_the_digest_is_of_the_files_the_split_the_labels_and_what_a_record_becomes() -> None:
    from dataclasses import replace

    images = Groups(3).images()
    others = [
        replace(images, files="other"),
        replace(images, rows=torch.arange(1, 15), labels=images.labels[1:]),  # type: ignore[index]
        replace(images, rows=torch.cat([torch.arange(14), torch.tensor([15])])),
        replace(images, labels=(images.labels + 1) % 7),  # type: ignore[operator]
        replace(images, labels=None),
        replace(images, levels=16),
        replace(images, spec=Spec((3, 2, 2), 256, None, None)),
    ]
    assert images.digest() == Groups(3).images().digest()
    assert images.digest() == replace(images, spec=Spec((1, 2, 2), 256, (2, 2), None)).digest()  # asked for, or its own
    assert len({images.digest(), *(other.digest() for other in others)}) == 1 + len(others)
