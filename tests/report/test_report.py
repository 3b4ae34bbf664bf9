"""The page as a reader, a screen reader and a browser meet it; and its numbers are those that were computed."""

from __future__ import annotations

import base64
import io
import itertools
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from PIL import Image

from report_cases import Page, make_run
from tarflow.checkpoint import open_run
from tarflow.data.load import load
from tarflow.evaluation.likelihood.evaluate import evaluate_likelihood
from tarflow.evaluation.likelihood.gaussian import fit_yardstick
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.report.build import PICTURES, SECTIONS, subjects_of, write_report
from tarflow.report.likelihood import advantage
from tarflow.report.parts import TEMPLATES, Strip, sheet
from tarflow.report.subject import DRAWS, Settings, Subject
from tarflow.report.words import quoted

SETTINGS = Settings(images=3, limit=12, seed=5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A conditional model of noisy images and an unconditional one of the data."""
    root = tmp_path_factory.mktemp("runs")
    return [
        make_run(root / "noisy", classes=True, noise="gaussian"),
        make_run(root / "exact", classes=False, noise="uniform"),
    ]


@pytest.fixture(scope="module")
def reports(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The page of each run, of both, and of a directory that holds a model and nothing else."""
    root = tmp_path_factory.mktemp("reports")
    open_run(runs[0]).flow.save_pretrained(root / "hub")
    wanted = {"noisy": runs[:1], "exact": runs[1:], "both": runs, "hub": [root / "hub"]}
    return {
        name: write_report(paths, root / f"of {name}", settings=SETTINGS).read_text(encoding="utf-8")
        for name, paths in wanted.items()
    }


every_report = pytest.mark.parametrize("name", ["noisy", "exact", "both", "hub"])


# --- as a screen reader meets it -------------------------------------------------------------------------------------


@every_report
def test_headings_are_in_order_under_one_title(reports: dict[str, str], name: str) -> None:
    page = Page(reports[name])
    levels = [int(e.name[1]) for e in page.all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    assert all(e.text.strip() for e in page.all("h1", "h2", "h3", "title"))


@every_report
def test_every_picture_says_what_it_shows(reports: dict[str, str], name: str) -> None:
    page = Page(reports[name])
    assert page.all("img") and page.all("svg")
    for image in page.all("img"):
        assert len(image.attributes["alt"]) > 10 and "figure" in image.parents
        assert int(image.attributes["width"]) > 0 and int(image.attributes["height"]) > 0
    for svg in page.all("svg"):
        assert svg.attributes["role"] == "img" and svg.children[:2] == ["title", "desc"]
    for figure in page.all("figure"):
        assert figure.children[-1] == "figcaption"
    assert all(e.text.endswith(".") for e in page.all("figcaption"))


@every_report
def test_landmarks_language_and_ids(reports: dict[str, str], name: str) -> None:
    page = Page(reports[name])
    assert page.all("html")[0].attributes["lang"] == "en"
    for landmark in ("header", "nav", "main", "footer"):
        assert len(page.all(landmark)) == 1
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert link.attributes["href"].removeprefix("#") in ids and link.text
    for entry in page.elements:
        for reference in entry.attributes.get("aria-labelledby", "").split():
            assert reference in ids
    assert all(e.attributes["scope"] in ("row", "col") for e in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))


def contrast(first: str, second: str) -> float:
    """WCAG 2.2: (L1 + 0.05) / (L2 + 0.05) of relative luminances."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


STYLE_SHEET = TEMPLATES.get_template("style.css").render()
# (what is drawn, on which grounds): text needs a contrast of 4.5, marks 3.
TEXT_ON = {
    "text": ("ground", "panel", "block", "part", "latent"),
    "muted": ("ground", "panel"),
    "link": ("ground", "panel"),
}
MARKS_ON = {"first": ("panel", "block"), "second": ("panel",), "third": ("panel",)}


def themes() -> dict[str, dict[str, str]]:
    """The colours of the style sheet by theme and name."""
    light, dark = re.findall(r":root \{(.*?)\}", STYLE_SHEET, re.S)
    return {
        name: dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", text)) for name, text in (("light", light), ("dark", dark))
    }


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_told_apart(theme: str) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    colours = themes()[theme]
    for least, pairs in ((4.5, TEXT_ON), (3, MARKS_ON)):
        for name, grounds in pairs.items():
            for ground in grounds:
                assert contrast(colours[name], colours[ground]) >= least, (name, ground)


def test_the_style_sheet_uses_only_colours_of_the_themes_and_has_both() -> None:
    light, dark = themes().values()
    assert light.keys() == dark.keys() and not set(light.values()) & {dark["ground"], dark["text"]}
    assert set(re.findall(r"var\(--([\w-]+)\)", STYLE_SHEET)) <= light.keys()
    assert dark["ground"] in STYLE_SHEET.partition("@media (prefers-color-scheme: dark)")[2]
    assert "image-rendering: pixelated" in STYLE_SHEET and "max-width: 36rem" in STYLE_SHEET
    assert STYLE_SHEET.count("{") == STYLE_SHEET.count("}")


# --- as a browser meets it -------------------------------------------------------------------------------------------


@every_report
def test_nothing_is_asked_of_anybody(reports: dict[str, str], name: str) -> None:
    page = Page(reports[name])
    for entry in page.elements:
        assert entry.name not in ("script", "iframe", "object", "embed", "base", "form"), entry.name
        for key, value in entry.attributes.items():
            assert not key.startswith("on")
            if key in ("src", "href", "srcset", "action", "poster", "data"):
                assert value.startswith(("#", "data:")), value[:50]
    style = " ".join(e.text for e in page.all("style"))
    assert "url(" not in style and "@import" not in style and "//" not in style
    (policy,) = [e for e in page.all("meta") if "http-equiv" in e.attributes]
    assert policy.attributes["content"].startswith("default-src 'none'")


@every_report
def test_pictures_and_drawings_can_be_read(reports: dict[str, str], name: str) -> None:
    for entry in Page(reports[name]).all("img"):
        data = entry.attributes["src"].removeprefix("data:image/png;base64,")
        image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        assert image.format == "PNG"
        assert image.size == (int(entry.attributes["width"]), int(entry.attributes["height"]))
    for svg in re.findall(r"<svg.*?</svg>", reports[name], re.S):
        ET.fromstring(svg)


def test_names_that_look_like_markup_are_text(runs: list[Path], tmp_path: Path) -> None:
    path = make_run(tmp_path / "<img src=x> & co", classes=False, noise="uniform", source="<b>nowhere</b>")
    text = write_report([path], tmp_path / "out", settings=SETTINGS).read_text()
    assert "<img src=x>" not in text and "<b>nowhere" not in text
    assert Page(text).all("h1")[0].text == "Report on <img src=x> & co"


# --- as a reader meets it --------------------------------------------------------------------------------------------


def test_the_likelihoods_are_those_of_evaluate(reports: dict[str, str], runs: list[Path]) -> None:
    for name, path, policies in (("noisy", runs[0], ("given", "marginal")), ("exact", runs[1], ("none",))):
        run = open_run(path)
        splits = load("digits", levels=17)
        held_out = splits.held_out.choice(12, 5)
        shown = Page(reports[name]).section("likelihood")
        for policy in policies:
            result = evaluate_likelihood(
                run.flow,
                held_out.images,
                held_out.labels if policy == "given" else None,
                scoring=Scoring(run.measure, DRAWS, 5, policy),
                yardstick=fit_yardstick(splits.train.images, run.measure),
            )
            assert quoted(result.mean, result.standard_error) in shown
            assert quoted(result.yardstick.mean, result.yardstick.standard_error) in shown
            found = result.yardstick
            assert f"{quoted(abs(found.advantage), found.advantage_standard_error)} worse" in shown  # untrained
            assert found.advantage < 0 and advantage(result) in shown and "-" not in advantage(result)
            assert str(result.scoring.measure) in shown and str(result.images) in shown


def test_a_model_of_noisy_images_is_not_quoted_in_bits_of_the_data(reports: dict[str, str]) -> None:
    assert "noisy bits/dim" in Page(reports["noisy"]).section("likelihood")
    assert "noisy" not in Page(reports["exact"]).section("likelihood")


def test_what_does_not_apply_says_why(reports: dict[str, str]) -> None:
    exact, hub = Page(reports["exact"]), Page(reports["hub"])
    assert "nothing to denoise" in exact.section("denoising")
    for name in ("likelihood", "neighbours", "extremes", "maps"):
        assert "no section “data”" in hub.section(name)
    assert "no metrics.jsonl" in hub.section("curves") and "no section “training”" in hub.section("denoising")
    assert "10: 0, 1, 2" in hub.section("trained") and "not stored" in hub.section("trained")
    assert len(hub.all("img")) == 10 + 5 + 3  # classes, scales, traced samples: what needs nothing but the model


def test_samples_that_overflow_are_told_and_not_the_end(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tarflow.report import samples, subject
    from tarflow.sampling.sample import SamplingError

    def overflow(*args: object, **kwargs: object) -> None:
        raise SamplingError("sample 0 is not finite")

    for module, function in ((samples, "trace"), (subject, "sample")):
        monkeypatch.setattr(module, function, overflow)
    page = Page(write_report(runs, tmp_path, settings=SETTINGS).read_text())
    for name in (
        "noisy-samples",
        "noisy-guidance",
        "noisy-trace",
        "noisy-neighbours",
        "exact-samples",
        "resolutions",
        "noisy-denoising",
    ):
        assert "sample 0 is not finite" in page.section(name), name
    assert "PSNR" in page.section("noisy-denoising")


def test_data_that_are_gone_are_named(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", classes=True, noise="gaussian", source=str(tmp_path / "gone"))
    page = Page(write_report([path], settings=SETTINGS).read_text())
    assert (path / "report" / "report.html").is_file()  # where it goes when nothing is said
    for name in ("trained", "likelihood", "neighbours", "extremes", "maps"):
        assert "gone" in page.section(name)
    assert "denoised with σ = 0.1" in page.section("denoising")  # samples at least


def test_one_section_each_in_order_and_resolutions_where_there_are_several(reports: dict[str, str]) -> None:
    alone = [e.attributes["id"] for e in Page(reports["noisy"]).all("section")]
    assert alone == [name for name, _, _ in SECTIONS]
    both = Page(reports["both"])
    ids = [e.attributes["id"] for e in both.all("section")]
    assert ids == ["runs", *(f"{run}-{name}" for run in ("noisy", "exact") for name in alone), "resolutions"]
    assert "8×8" in both.section("resolutions")


def test_two_runs_of_one_name_are_kept_apart(runs: list[Path]) -> None:
    first, second = subjects_of([open_run(runs[0])] * 2, SETTINGS)
    assert (first.prefix, second.prefix) == ("noisy-", "noisy-2-")
    third = subjects_of([open_run(runs[0]), open_run(runs[0]), open_run(runs[0])], SETTINGS)[2]
    assert third.prefix == "noisy-3-"


def test_a_checkpoint_finds_the_metrics_of_its_run(tmp_path: Path) -> None:
    root = make_run(tmp_path / "run", classes=False, noise="uniform")
    step = tmp_path / "run" / "checkpoints" / "step-40"
    step.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (step / name).write_bytes((root / name).read_bytes())
    subject = Subject(open_run(step), SETTINGS)
    assert len(subject.metrics) == 5 and subject.name == "run/step-40"


def test_the_same_report_twice(runs: list[Path], reports: dict[str, str], tmp_path: Path) -> None:
    assert write_report(runs[:1], tmp_path, settings=SETTINGS).read_text() == reports["noisy"]
    other = write_report(runs[:1], tmp_path, settings=Settings(3, 12, seed=6)).read_text()  # over the older one
    assert other != reports["noisy"]


def test_pictures_lie_beside_the_page(runs: list[Path], tmp_path: Path) -> None:
    write_report(runs, tmp_path, settings=SETTINGS)
    names = {p.name for p in (tmp_path / PICTURES).iterdir()}
    assert {"noisy-samples.png", "noisy-denoising.png", "noisy-maps.png", "exact-trace.png"} <= names
    assert "exact-denoising.png" not in names and "resolutions.png" in names


def test_a_sheet_holds_every_pixel() -> None:
    images = torch.randint(0, 256, (2, 3, 36, 36), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    pixels = torch.frombuffer(bytearray(sheet([Strip("a", images, "b")]).tobytes()), dtype=torch.uint8).view(72, 148, 4)
    for k, left in enumerate((0, 76)):
        tile = pixels[:, left : left + 72, :3].permute(2, 0, 1)
        assert torch.equal(tile[:, ::2, ::2], images[k]) and torch.equal(tile[:, 1::2, 1::2], images[k])
    assert int(pixels[:, 72:76, 3].max()) == 0  # the page shows between them


def test_no_run_and_no_such_setting() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        write_report([])
    with pytest.raises(ValueError, match="images: expected a positive number, got 0"):
        Settings(images=0)
