"""Runs to report on, of the embedded digits, made without training; and a reader of the page that comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from flow_cases import randomise
from tarflow import TarFlow, TarFlowConfig, checkpoint
from tarflow.config import DataConfig, RunConfig, TrainingConfig
from tarflow.model.saving import WEIGHTS_FILE

VOID = {"img", "link", "meta", "br", "hr", "input"}
DIGITS = tuple(str(k) for k in range(10))


def make_run(
    path: Path, *, classes: bool, noise: str, patch_size: int = 4, source: str = "digits", **fields: Any
) -> Path:
    """A run of an untrained flow, of whose config are `fields`, with metrics that somebody might have measured."""
    # Bounded, because random weights under strong guidance overflow.
    shape = {"channels": 1, "num_classes": 10 if classes else 0, "head_dim": 8, "log_scale_bound": 1.0} | fields
    model = TarFlowConfig(8, patch_size, 16, (1, 2), **shape)  # type: ignore[arg-type]
    data = DataConfig(source, levels=17, class_names=DIGITS if classes else (), conditional=classes)
    training = TrainingConfig(noise=noise, noise_std=0.1, steps=40, batch_size=8)  # type: ignore[arg-type]
    flow = randomise(TarFlow(model))
    path.mkdir(parents=True)
    checkpoint.write_config(path, RunConfig(model, data, training))
    flow.save_weights(path / WEIGHTS_FILE)
    bits = "bits_per_dim" if noise == "uniform" else "noisy_bits_per_dim"
    for step in range(10, 50, 10):
        line = {"step": step, "loss": 100 / step, bits: 5 + 10 / step, "seconds": step / 2}
        checkpoint.append_metrics(path, line)
    checkpoint.append_metrics(path, {"step": 40, f"held_out_{bits}": 5.5, "standard_error": 0.1})
    return path


@dataclass
class Element:
    """An element of the page, with the text of its own and below."""

    name: str
    attributes: dict[str, str]
    parents: tuple[str, ...]
    text: str = ""
    children: list[str] = field(default_factory=list)


class Page(HTMLParser):
    """Every element of an HTML page; raises AssertionError where an end tag does not fit."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.open: list[Element] = []
        self.feed(text)
        self.close()
        assert not self.open, [e.name for e in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        found = Element(tag, {k: v or "" for k, v in attrs}, tuple(e.name for e in self.open))
        assert len(found.attributes) == len(attrs), f"<{tag}> has an attribute twice"
        if self.open:
            self.open[-1].children.append(tag)
        self.elements.append(found)
        if tag not in VOID:
            self.open.append(found)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1].name == tag, f"</{tag}> ends nothing"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for entry in self.open:
            entry.text += data

    def all(self, *names: str) -> list[Element]:
        return [e for e in self.elements if e.name in names]

    def section(self, name: str) -> str:
        """The text of the section with this id."""
        (found,) = [e for e in self.all("section") if e.attributes.get("id") == name]
        return found.text
