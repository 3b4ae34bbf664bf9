"""A small network trained on the spot to tell the classes of a data set, for features that need no extra package.

Its distances are honest under their own name ("FD-Classifier") and comparable between models of one data set, on one
trained network, only: the digest says which. It sees what separates the classes, and little besides.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tarflow import caching
from tarflow.data.batches import batch_indices
from tarflow.evaluation.quality.extractors.extractor import FLOAT32, Extractor, unit_pixels
from tarflow.seeding import seeded_generator
from tarflow.tensor_files import read_tensors, save_tensors

DIMS = 64
SCALED_BY = 1_000  # training images at most, whose features set the scale
STEPS = 600  # of 128 images: 97 % of held-out digits right, in four seconds on one core
BATCH_SIZE = 128
LEARNING_RATE = 3e-3
DESCRIPTION = (
    f"the {DIMS} last activations of a small convolutional network trained for {STEPS} steps on the labelled training "
    "images, scaled to a mean variance of 1 over them; levels as 2k/(L-1) - 1, not resized"
)


class SmallNetwork(nn.Module):
    """Three convolutions, two of them of stride 2, and a linear layer: images (N, 3, H, W) to features (N, 64).

    `classify` maps features, before they are divided by `scale`, to the logits of the classes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1, **FLOAT32)
        self.second = nn.Conv2d(32, 64, 3, stride=2, padding=1, **FLOAT32)
        self.third = nn.Conv2d(64, 64, 3, stride=2, padding=1, **FLOAT32)
        self.last = nn.Linear(64 * 4, DIMS, **FLOAT32)
        self.classify = nn.Linear(DIMS, classes, **FLOAT32)
        self.scale = nn.Buffer(torch.ones((), **FLOAT32))

    def forward(self, x: Tensor) -> Tensor:
        return self.activations(x) / self.scale

    def activations(self, x: Tensor) -> Tensor:
        """What `classify` takes: (N, 64)."""
        for layer in (self.first, self.second, self.third):
            x = F.relu(layer(x))
        return F.relu(self.last(F.adaptive_avg_pool2d(x, 2).flatten(1)))


def open_classifier(
    images: Tensor,
    labels: Tensor,
    levels: int,
    *,
    device: torch.device | str = "cpu",
    cache: Path | None = None,
) -> Extractor:
    """The extractor "Classifier", trained on these images, or as it was when it was trained on them before.

    Args:
        images: (N, C, H, W) uint8, C 1 or 3. labels: (N,) int64 from 0, at least two classes.
        levels: values a pixel can take.
        cache: a directory for the weights. With it a figure can be compared with those of another day: training again
            elsewhere, or with another number of threads, gives a slightly different network.

    Raises:
        ValueError: images and labels that do not fit each other, or a single class.
    """
    if images.ndim != 4 or labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"expected images (N, C, H, W) and labels (N,) int64, got {tuple(images.shape)} and {tuple(labels.shape)} "
            f"{labels.dtype}"
        )
    if len(labels.unique()) < 2 or int(labels.min()) < 0:
        raise ValueError(f"extractor 'classifier': expected at least two classes, got {sorted(set(labels.tolist()))}")
    with torch.inference_mode(False):
        network = SmallNetwork(int(labels.max()) + 1)
    digest = hashlib.blake2b(
        f"{DESCRIPTION}\0{BATCH_SIZE}\0{LEARNING_RATE}\0{images.shape}\0{levels}".encode(), digest_size=16
    )
    digest.update(images.contiguous().view(-1).cpu().numpy().data)
    digest.update(labels.cpu().numpy().data)
    file = None if cache is None else cache / "classifiers" / f"{digest.hexdigest()}.safetensors"
    state = None if file is None else _kept(file, network)
    if state is None:
        train(network, images.cpu(), labels.cpu(), levels)
        if cache is not None and file is not None:
            with caching.optional(cache):
                file.parent.mkdir(parents=True, exist_ok=True)
                save_tensors(file, network.state_dict())
    else:
        network.load_state_dict(state)
    weights = hashlib.blake2b(DESCRIPTION.encode(), digest_size=16)
    for value in network.state_dict().values():
        weights.update(value.numpy().data)
    network = network.eval().requires_grad_(False).to(device)
    return Extractor("Classifier", DESCRIPTION, weights.hexdigest(), DIMS, network, prepare)


def prepare(pixels: Tensor, levels: int) -> Tensor:
    """Images (N, C, H, W) uint8 as (N, 3, H, W) float32 in -1 … 1."""
    return 2 * unit_pixels(pixels, levels) - 1


def train(network: SmallNetwork, images: Tensor, labels: Tensor, levels: int) -> None:
    """Minimise the cross-entropy for STEPS steps, on the CPU, from weights and in an order that are always the same.

    What is left is a scale of features that does not depend on how long a network was trained.
    """
    generator = seeded_generator("small network")
    for parameter in network.parameters():
        bound = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.0
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    network.train()
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        for step in range(STEPS):
            chosen = batch_indices(len(images), BATCH_SIZE, step, 0)
            logits = network.classify(network.activations(prepare(images[chosen], levels)))
            loss = F.cross_entropy(logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * (1 - step / STEPS)
            optimizer.step()
    chosen = batch_indices(len(images), min(len(images), SCALED_BY), 0, 1)
    with torch.no_grad():
        seen = network.activations(prepare(images[chosen], levels))
        network.scale.copy_(seen.var(dim=0).mean().sqrt())


def _kept(file: Path, network: nn.Module) -> dict[str, Tensor] | None:
    """The weights of an earlier day; None where there are none, or they are damaged: they are simply made again."""
    try:
        state = read_tensors(file)
    except (OSError, ValueError):
        return None
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    return state if {name: value.shape for name, value in state.items()} == shapes else None
