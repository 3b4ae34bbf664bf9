"""Inception v3 as FID uses it: the network of the original TensorFlow graph, and a file of its weights.

FID (Heusel et al. 2017) is the Fréchet distance on the 2,048 features of one particular network: the Inception v3 of
December 2015, with 1,008 classes, which PyTorch programs read as `pt_inception-2015-12-05-6726825d.pth`. It is not the
one that image libraries ship, whose FIDs are other numbers. Nothing is downloaded: whoever has the file names it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tarflow.evaluation.quality.extractors.extractor import FLOAT32, INCEPTION, Extractor, resized, unit_pixels
from tarflow.tensor_files import read_tensors, read_torch_file

SIZE = 299
DIMS = 2048
CLASSES = 1008
EXPECTED = "expected the weights of FID's Inception v3 (pt_inception-2015-12-05-6726825d.pth)"
DESCRIPTION = (
    f"Inception v3 of 2015-12-05 (FID's), {DIMS} features after the mean over places; images stretched to "
    f"{SIZE}x{SIZE} (bilinear, not antialiased), levels as 2k/(L-1) - 1"
)

# A branch is a row of convolutions: (name, channels out, kernel, stride, padding).
Convolution = tuple[str, int, tuple[int, int], int, tuple[int, int]]


def _same(name: str, out: int, height: int, width: int | None = None) -> Convolution:
    width = height if width is None else width
    return name, out, (height, width), 1, (height // 2, width // 2)


def _halving(name: str, out: int) -> Convolution:
    return name, out, (3, 3), 2, (0, 0)


class ConvolutionNormRelu(nn.Module):
    """A convolution without bias, batch norm, ReLU; the names of its parts are those of the file."""

    def __init__(self, channels: int, out: int, kernel: tuple[int, int], stride: int, padding: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False, **FLOAT32)
        self.bn = nn.BatchNorm2d(out, eps=0.001, **FLOAT32)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches side by side, their channels one after the other.

    Args:
        channels: of what comes in.
        branches: rows of convolutions. A row whose last entry is a list ends in those side by side.
        pool: what comes before the last branch: "mean" (only of what lies within the image: the graph does not count
            the padding), "max", or "halve", a maximum with stride 2 that is a branch of its own and has no convolution.
    """

    def __init__(
        self, channels: int, branches: list[list[Convolution | list[Convolution]]], pool: str = "mean"
    ) -> None:
        super().__init__()
        self.pool = pool
        self.rows: list[list[str | list[str]]] = []
        self.out_channels = channels if pool == "halve" else 0
        for branch in branches:
            width, row = channels, []
            for entry in branch:
                parts = entry if isinstance(entry, list) else [entry]
                for name, out, kernel, stride, padding in parts:
                    self.add_module(name, ConvolutionNormRelu(width, out, kernel, stride, padding))
                names = [name for name, *_ in parts]
                row.append(names if isinstance(entry, list) else names[0])
                width = sum(out for _, out, *_ in parts) if isinstance(entry, list) else parts[0][1]
            self.rows.append(row)
            self.out_channels += width

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for number, row in enumerate(self.rows):
            value = x
            if number == len(self.rows) - 1 and self.pool != "halve":
                value = self._pooled(x)
            for entry in row:
                if isinstance(entry, str):
                    value = getattr(self, entry)(value)
                else:
                    value = torch.cat([getattr(self, name)(value) for name in entry], dim=1)
            found.append(value)
        if self.pool == "halve":
            found.append(F.max_pool2d(x, 3, stride=2))
        return torch.cat(found, dim=1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "max":
            return F.max_pool2d(x, 3, stride=1, padding=1)
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _stage_35(channels: int, pooled: int) -> Mixed:
    return Mixed(
        channels,
        [
            [_same("branch1x1", 64, 1)],
            [_same("branch5x5_1", 48, 1), _same("branch5x5_2", 64, 5)],
            [_same("branch3x3dbl_1", 64, 1), _same("branch3x3dbl_2", 96, 3), _same("branch3x3dbl_3", 96, 3)],
            [_same("branch_pool", pooled, 1)],
        ],
    )


def _to_17(channels: int) -> Mixed:
    deep: list[Convolution | list[Convolution]] = [_same("branch3x3dbl_1", 64, 1), _same("branch3x3dbl_2", 96, 3)]
    return Mixed(channels, [[_halving("branch3x3", 384)], [*deep, _halving("branch3x3dbl_3", 96)]], "halve")


def _stage_17(channels: int, inner: int) -> Mixed:
    deep = [(inner, 1, 1), (inner, 7, 1), (inner, 1, 7), (inner, 7, 1), (192, 1, 7)]
    return Mixed(
        channels,
        [
            [_same("branch1x1", 192, 1)],
            [_same("branch7x7_1", inner, 1), _same("branch7x7_2", inner, 1, 7), _same("branch7x7_3", 192, 7, 1)],
            [_same(f"branch7x7dbl_{k}", out, height, width) for k, (out, height, width) in enumerate(deep, 1)],
            [_same("branch_pool", 192, 1)],
        ],
    )


def _to_8(channels: int) -> Mixed:
    deep = [(192, 1, 1), (192, 1, 7), (192, 7, 1)]
    row: list[Convolution | list[Convolution]] = [
        _same(f"branch7x7x3_{k}", out, height, width) for k, (out, height, width) in enumerate(deep, 1)
    ]
    first: list[Convolution | list[Convolution]] = [_same("branch3x3_1", 192, 1), _halving("branch3x3_2", 320)]
    return Mixed(channels, [first, [*row, _halving("branch7x7x3_4", 192)]], "halve")


def _stage_8(channels: int, pool: str) -> Mixed:
    def split(name: str) -> list[Convolution]:
        return [_same(f"{name}a", 384, 1, 3), _same(f"{name}b", 384, 3, 1)]

    return Mixed(
        channels,
        [
            [_same("branch1x1", 320, 1)],
            [_same("branch3x3_1", 384, 1), split("branch3x3_2")],
            [_same("branch3x3dbl_1", 448, 1), _same("branch3x3dbl_2", 384, 3), split("branch3x3dbl_3")],
            [_same("branch_pool", 192, 1)],
        ],
        pool,
    )


class Inception(nn.Module):
    """FID's Inception v3 up to its features: images (N, 3, 299, 299) in -1 … 1 to (N, 2048).

    `fc` is there because it is in the file; the features come before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvolutionNormRelu(3, 32, (3, 3), 2, (0, 0))
        self.Conv2d_2a_3x3 = ConvolutionNormRelu(32, 32, (3, 3), 1, (0, 0))
        self.Conv2d_2b_3x3 = ConvolutionNormRelu(32, 64, (3, 3), 1, (1, 1))
        self.Conv2d_3b_1x1 = ConvolutionNormRelu(64, 80, (1, 1), 1, (0, 0))
        self.Conv2d_4a_3x3 = ConvolutionNormRelu(80, 192, (3, 3), 1, (0, 0))
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _stage_35(192, 32), _stage_35(256, 64), _stage_35(288, 64)
        self.Mixed_6a = _to_17(288)
        self.Mixed_6b, self.Mixed_6c = _stage_17(768, 128), _stage_17(768, 160)
        self.Mixed_6d, self.Mixed_6e = _stage_17(768, 160), _stage_17(768, 192)
        self.Mixed_7a = _to_8(768)
        # The last stage takes a maximum where the one before takes a mean: so does the graph of 2015.
        self.Mixed_7b, self.Mixed_7c = _stage_8(1280, "mean"), _stage_8(2048, "max")
        self.fc = nn.Linear(DIMS, CLASSES, **FLOAT32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = F.max_pool2d(x, 3, stride=2)
        for name, module in self.named_children():
            if name.startswith("Mixed"):
                x = module(x)
        return x.mean(dim=(2, 3))


def open_inception(path: str | Path, device: torch.device | str = "cpu") -> Extractor:
    """The extractor "Inception" with the weights in a file, `.pth` or `.safetensors`.

    Raises:
        FileNotFoundError: no such file. ValueError: it holds something else; the message names the file.
    """
    path = Path(path)
    state = _read(path)
    network = Inception()
    expected = network.state_dict()
    # Files from before PyTorch 0.4 have no counts of batches; they are of no use here.
    counts = {name: value for name, value in expected.items() if name.endswith("num_batches_tracked")}
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: no table of tensors; {EXPECTED}")
    state = counts | state
    for name, value in expected.items():
        if name not in state:
            raise ValueError(f"{path}: {name} is missing; {EXPECTED}")
        if state[name].shape != value.shape:
            got = f"{name} is {tuple(state[name].shape)} and not {tuple(value.shape)}"
            raise ValueError(f"{path}: {got}; {EXPECTED}")
    network.load_state_dict({name: state[name] for name in expected})
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(DESCRIPTION.encode())
    network = network.eval().requires_grad_(False).to(device)
    return Extractor(INCEPTION, DESCRIPTION, digest.hexdigest()[:32], DIMS, network, prepare)


def prepare(pixels: Tensor, levels: int) -> Tensor:
    """Images (N, C, H, W) uint8 as FID shows them to the network: (N, 3, 299, 299) float32 in -1 … 1."""
    return 2 * resized(unit_pixels(pixels, levels), SIZE, "bilinear") - 1


def _read(path: Path) -> object:
    return read_torch_file(path, EXPECTED) if path.suffix != ".safetensors" else read_tensors(path, EXPECTED)
