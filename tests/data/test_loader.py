"""A set of images is a data set for a `DataLoader` of torch's own, with workers or without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from small_runs import write_images
from tarflow.data.load import load, load_dataset
from tarflow.data.store.write import prepare


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["folder", "prepared"])
def test_a_loader_gives_every_image_once_with_its_label(kind: str, workers: int, tmp_path: Path) -> None:
    for label, name in enumerate(("cat", "dog")):
        write_images(tmp_path / "photos" / name, 12, seed=100 * label)
    source = tmp_path / "photos"
    if kind == "prepared":
        prepare(str(source), tmp_path / "prepared")
        source = tmp_path / "prepared"
    train = load(str(source)).train
    loader = DataLoader(train, batch_size=5, shuffle=True, num_workers=workers, generator=torch.Generator())
    batches = [(pixels, labels) for pixels, labels in loader]
    assert batches[0][0].shape == (5, 1, 4, 4) and batches[0][0].dtype == torch.uint8
    found = {(pixels.numpy().tobytes(), int(label)) for batch in batches for pixels, label in zip(*batch, strict=True)}
    assert train.labels is not None
    assert found == {(i.numpy().tobytes(), int(y)) for i, y in zip(train.images, train.labels, strict=True)}
    assert len(found) == len(train)


def test_a_set_without_labels_gives_images_alone_and_can_be_learned_from(tmp_path: Path) -> None:
    whole = load(str(write_images(tmp_path / "photos", 10)))
    assert torch.equal(next(iter(DataLoader(whole.train, batch_size=3))), whole.train.images[:3])
    again = load_dataset(whole.train, whole.held_out)
    assert torch.equal(again.train.images, whole.train.images) and again.train.labels is None
    with pytest.raises(IndexError):
        whole.train[len(whole.train)]
