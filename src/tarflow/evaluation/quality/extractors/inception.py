"""Inception v3 as FID uses it: the network of the original TensorFlow graph, and a file of its weights.

FID (Heusel et al. 2017) is the Fréchet distance on the 2,048 features of one particular network: the Inception v3 of
December 2015, with 1,008 classes, which PyTorch programs read as `pt_inception-2015-12-05-6726825d.pth`. It is not the
one that image libraries ship, whose FIDs are other numbers. Nothing is downloaded: whoever has the file names it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tarflow.evaluation.quality.extractors.extractor import FLOAT32, Extractor, file_digest, resized, unit_pixels
from tarflow.tensor_files import read_tensors, read_torch_file

SIZE = 299
DIMS = 2048
CLASSES = 1008
EXPECTED = "expected the weights of FID's Inception v3 (pt_inception-2015-12-05-6726825d.pth)"
# Tested on random weights alone, where features equal pytorch-fid's; no FID of ours was held against a published one.
FID, KID = "FID-unverified", "KID-unverified"
DESCRIPTION = (
    f"Inception v3 of 2015-12-05 (FID's), {DIMS} features after the mean over places; images stretched to "
    f"{SIZE}x{SIZE} (bilinear, not antialiased), levels as 2k/(L-1) - 1"
)

# A convolution is (channels out, height and width of its kernel); a branch is a row of them, of which two may lie side
# by side. Their names in the file are the branch's, with their place in the row behind it, and "a" or "b".
Convolution = tuple[int, int, int]
Branches = dict[str, list[Convolution | list[Convolution]]]
POOLED = "branch_pool"  # the branch that begins with a pooling


def _at_35(pooled: int) -> Branches:
    return {
        "branch1x1": [(64, 1, 1)],
        "branch5x5": [(48, 1, 1), (64, 5, 5)],
        "branch3x3dbl": [(64, 1, 1), (96, 3, 3), (96, 3, 3)],
        POOLED: [(pooled, 1, 1)],
    }


def _at_17(inner: int) -> Branches:
    return {
        "branch1x1": [(192, 1, 1)],
        "branch7x7": [(inner, 1, 1), (inner, 1, 7), (192, 7, 1)],
        "branch7x7dbl": [(inner, 1, 1), (inner, 7, 1), (inner, 1, 7), (inner, 7, 1), (192, 1, 7)],
        POOLED: [(192, 1, 1)],
    }


TO_17: Branches = {"branch3x3": [(384, 3, 3)], "branch3x3dbl": [(64, 1, 1), (96, 3, 3), (96, 3, 3)], POOLED: []}
TO_8: Branches = {
    "branch3x3": [(192, 1, 1), (320, 3, 3)],
    "branch7x7x3": [(192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3)],
    POOLED: [],
}
AT_8: Branches = {
    "branch1x1": [(320, 1, 1)],
    "branch3x3": [(384, 1, 1), [(384, 1, 3), (384, 3, 1)]],
    "branch3x3dbl": [(448, 1, 1), (384, 3, 3), [(384, 1, 3), (384, 3, 1)]],
    POOLED: [(192, 1, 1)],
}
# By name: the pooling, and the branches. The last one takes a maximum where the one before takes a mean: so does the
# graph of 2015.
MIXED: dict[str, tuple[Literal["mean", "max", "halve"], Branches]] = {
    **{"Mixed_5b": ("mean", _at_35(32)), "Mixed_5c": ("mean", _at_35(64)), "Mixed_5d": ("mean", _at_35(64))},
    "Mixed_6a": ("halve", TO_17),
    **{"Mixed_6b": ("mean", _at_17(128)), "Mixed_6c": ("mean", _at_17(160)), "Mixed_6d": ("mean", _at_17(160))},
    "Mixed_6e": ("mean", _at_17(192)),
    "Mixed_7a": ("halve", TO_8),
    **{"Mixed_7b": ("mean", AT_8), "Mixed_7c": ("max", AT_8)},
}


class ConvolutionNormRelu(nn.Module):
    """A convolution without bias, batch norm, ReLU; the names of its parts are those of the file."""

    def __init__(self, channels: int, convolution: Convolution, stride: int = 1, padded: bool = True) -> None:
        super().__init__()
        out, *kernel = convolution
        padding = [size // 2 if padded else 0 for size in kernel]
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False, **FLOAT32)  # type: ignore[arg-type]
        self.bn = nn.BatchNorm2d(out, eps=0.001, **FLOAT32)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches side by side, their channels one after the other.

    `pooling` is how the last branch begins: by the mean of what lies within the image (the graph does not count the
    padding), by a maximum, or by a maximum of stride 2 ("halve"); then the other branches end with a stride of 2 too.
    """

    def __init__(self, channels: int, pooling: Literal["mean", "max", "halve"], branches: Branches) -> None:
        super().__init__()
        self.pooling = pooling
        self.out_channels = 0
        self.names: dict[str, list[list[str]]] = {}  # of each branch: what lies side by side, row by row
        for branch, row in branches.items():
            width, self.names[branch] = channels, []
            for place, entry in enumerate(row, 1):
                name = branch if len(row) == 1 else f"{branch}_{place}"
                if isinstance(entry, list):
                    parts = {f"{name}a": entry[0], f"{name}b": entry[1]}
                else:
                    parts = {name: entry}
                halves = pooling == "halve" and place == len(row)
                for part, convolution in parts.items():
                    self.add_module(part, ConvolutionNormRelu(width, convolution, 1 + halves, padded=not halves))
                width = sum(convolution[0] for convolution in parts.values())
                self.names[branch].append(list(parts))
            self.out_channels += width

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for branch, row in self.names.items():
            value = self._pooled(x) if branch == POOLED else x
            for names in row:
                value = torch.cat([self.get_submodule(name)(value) for name in names], dim=1)
            found.append(value)
        return torch.cat(found, dim=1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pooling == "mean":
            return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return F.max_pool2d(x, 3, stride=2) if self.pooling == "halve" else F.max_pool2d(x, 3, stride=1, padding=1)


class Inception(nn.Module):
    """FID's Inception v3 up to its features: images (N, 3, 299, 299) in -1 … 1 to (N, 2048).

    `fc` is there because it is in the file; the features come before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvolutionNormRelu(3, (32, 3, 3), 2, padded=False)
        self.Conv2d_2a_3x3 = ConvolutionNormRelu(32, (32, 3, 3), padded=False)
        self.Conv2d_2b_3x3 = ConvolutionNormRelu(32, (64, 3, 3))
        self.Conv2d_3b_1x1 = ConvolutionNormRelu(64, (80, 1, 1))
        self.Conv2d_4a_3x3 = ConvolutionNormRelu(80, (192, 3, 3), padded=False)
        channels = 192
        for name, (pooling, branches) in MIXED.items():
            mixed = Mixed(channels, pooling, branches)
            self.add_module(name, mixed)
            channels = mixed.out_channels
        self.fc = nn.Linear(DIMS, CLASSES, **FLOAT32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = F.max_pool2d(x, 3, stride=2)
        for name in MIXED:
            x = self.get_submodule(name)(x)
        return x.mean(dim=(2, 3))


def open_extractor(path: str | Path, device: torch.device | str = "cpu") -> Extractor:
    """The extractor "Inception" with the weights in a file, `.pth` or `.safetensors`.

    Raises:
        FileNotFoundError: no such file. ValueError: it holds something else; the message names the file.
    """
    path = Path(path)
    state = read_tensors(path, EXPECTED) if path.suffix == ".safetensors" else read_torch_file(path, EXPECTED)
    if not isinstance(state, dict):
        raise ValueError(f"{path}: no table of tensors; {EXPECTED}")
    network = Inception()
    expected = network.state_dict()
    # Files from before PyTorch 0.4 have no counts of batches, which nothing here reads.
    state = {name: value for name, value in expected.items() if name.endswith("num_batches_tracked")} | state
    for name, value in expected.items():
        if not isinstance(found := state.get(name), Tensor):
            raise ValueError(f"{path}: {name} is missing; {EXPECTED}")
        if found.shape != value.shape:
            raise ValueError(f"{path}: {name} is {tuple(found.shape)} and not {tuple(value.shape)}; {EXPECTED}")
    network.load_state_dict({name: state[name] for name in expected})
    network = network.eval().requires_grad_(False).to(device)
    return Extractor(
        "Inception", DESCRIPTION, file_digest(path, DESCRIPTION), DIMS, network, prepare, {"FD": FID, "KD": KID}
    )


def prepare(pixels: Tensor, levels: int) -> Tensor:
    """Images (N, C, H, W) uint8 as FID shows them to the network: (N, 3, 299, 299) float32 in -1 … 1."""
    return 2 * resized(unit_pixels(pixels, levels), SIZE, "bilinear") - 1
