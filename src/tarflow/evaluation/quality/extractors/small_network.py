"""A small network trained on the labelled images of a run: it judges classes, and gives features without any package.

Distances on its features have their own name ("FD-Classifier") and can be compared between models of one data set, on
one trained network, only: the digest says which. It sees what separates the classes, and little besides.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tarflow import digests
from tarflow.data.batches import batch_indices
from tarflow.data.sets import ImageSet
from tarflow.evaluation.quality.extractors.extractor import FLOAT32, Extractor, unit_pixels
from tarflow.seeding import seeded_generator
from tarflow.tensor_files import read_tensors, save_tensors

DIMS = 64
MAX_SIZE = 32  # pixels a side that the network sees: its time grows with their square, and classes show at 32
IMAGES_FOR_SCALE = 1_000  # training images at most, whose features set the scale
PREDICT_BATCH = 1_000  # images whose classes are predicted at once
STEPS = 600  # of BATCH_SIZE images: 98.3 % of held-out digits right (99.4 and 99.2 from other weights), in seconds
BATCH_SIZE = 64
LEARNING_RATE = 3e-3
LABEL_SMOOTHING = 0.1  # 99.2 % of held-out digits right in batches of 128, 98.5 % without: means of three trainings
DESCRIPTION = (
    f"the {DIMS} last activations of a small convolutional network trained for {STEPS} steps on the labelled training "
    f"images, scaled to a mean variance of 1 over them; levels as 2k/(L-1) - 1, longer sides averaged to {MAX_SIZE}"
)


class SmallNetwork(nn.Module):
    """Three convolutions, two of them of stride 2, and a linear layer: images (N, 3, H, W) to features (N, 64).

    `classify` maps features, before they are divided by `scale`, to the logits of the classes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, out, stride in ((3, 32, 1), (32, 64, 2), (64, 64, 2)):
            convolution = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False, **FLOAT32)
            layers += [convolution, nn.BatchNorm2d(out, **FLOAT32), nn.ReLU()]
        last = nn.Linear(64 * 4, DIMS, **FLOAT32)
        self.activations = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), last, nn.ReLU())
        self.classify = nn.Linear(DIMS, classes, **FLOAT32)
        self.scale = nn.Buffer(torch.ones((), **FLOAT32))

    def forward(self, x: Tensor) -> Tensor:
        return self.activations(x) / self.scale

    def predict(self, pixels: Tensor, levels: int) -> Tensor:
        """The class of each image (N, C, H, W) uint8, of as many levels as those of the training: (N,) int64, CPU."""
        device, found = self.scale.device, []
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            for part in pixels.split(PREDICT_BATCH):
                found.append(self.classify(self.activations(prepare(part.to(device), levels))).argmax(dim=1).cpu())
        return torch.cat(found)


def trained_network(images: ImageSet, cache: Path | None = None) -> SmallNetwork:
    """The network trained on these images, in evaluation mode, or as it was when it was trained on them before.

    Args:
        images: labelled, of at least two classes.
        cache: a directory for the weights. With it a figure can be compared with those of another day: training again
            elsewhere, or with another number of threads, gives a slightly different network.

    Raises ValueError for images without labels, or of a single class.
    """
    classes = set() if images.labels is None else set(images.labels.tolist())
    if len(classes) < 2 or min(classes) < 0:
        raise ValueError(f"extractor 'classifier': expected images of at least two classes, got {sorted(classes)}")
    settings = (DESCRIPTION, STEPS, BATCH_SIZE, LEARNING_RATE, LABEL_SMOOTHING, images.levels, images.digest())
    key = hashlib.blake2b("\0".join(map(str, settings)).encode(), digest_size=16).hexdigest()
    file = None if cache is None else cache / "classifiers" / f"{key}.safetensors"
    with torch.inference_mode(False):
        network = SmallNetwork(max(classes) + 1)
        if file is not None and (state := _kept(file, network)) is not None:
            network.load_state_dict(state)
        else:
            train(network, images)
            if cache is not None and file is not None:
                with digests.optional(cache):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    save_tensors(file, network.state_dict())
    return network.eval().requires_grad_(False)


def open_extractor(images: ImageSet, device: torch.device | str = "cpu", cache: Path | None = None) -> Extractor:
    """The extractor "Classifier": `trained_network` with everything that its features depend on."""
    network = trained_network(images, cache)
    weights = hashlib.blake2b(DESCRIPTION.encode(), digest_size=16)
    for value in network.state_dict().values():
        weights.update(value.numpy().data)
    return Extractor("Classifier", DESCRIPTION, weights.hexdigest(), DIMS, network.to(device), prepare)


def prepare(pixels: Tensor, levels: int) -> Tensor:
    """Images (N, C, H, W) uint8 as (N, 3, H, W) float32 in -1 … 1, H and W at most `MAX_SIZE`."""
    x = 2 * unit_pixels(pixels, levels) - 1
    height, width = (min(size, MAX_SIZE) for size in x.shape[-2:])
    return x if x.shape[-2:] == (height, width) else F.adaptive_avg_pool2d(x, (height, width))


def train(network: SmallNetwork, images: ImageSet) -> None:
    """Minimise the cross-entropy for STEPS steps, on the CPU, from weights and in an order that are always the same.

    What is left is a scale of features that does not depend on how long a network was trained.
    """
    assert images.labels is not None
    generator = seeded_generator("small network")
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = module.weight[0].numel() ** -0.5
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    network.train()
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        for step in range(STEPS):
            chosen = batch_indices(len(images), BATCH_SIZE, step, 0)
            logits = network.classify(network.activations(prepare(images.images[chosen], images.levels)))
            loss = F.cross_entropy(logits, images.labels[chosen], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * (1 - step / STEPS)
            optimizer.step()
    network.eval()
    chosen = batch_indices(len(images), min(len(images), IMAGES_FOR_SCALE), 0, 1)
    with torch.no_grad():
        seen = network.activations(prepare(images.images[chosen], images.levels))
        network.scale.copy_(seen.var(dim=0).mean().sqrt())


def _kept(file: Path, network: nn.Module) -> dict[str, Tensor] | None:
    """The weights of an earlier day; None where there are none, or they are damaged: they are simply made again."""
    try:
        state = read_tensors(file)
    except (OSError, ValueError):
        return None
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    return state if {name: value.shape for name, value in state.items()} == shapes else None
