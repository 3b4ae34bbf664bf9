"""From a run to a Space of the hub: a folder from which the page of `tarflow play` starts, here and there."""

from __future__ import annotations

import shutil
from pathlib import Path

from tarflow import __version__, storage
from tarflow.evaluation.likelihood.held_out import HELD_OUT_FILE
from tarflow.pretrained import CARD_FILE, card_text
from tarflow.runs import Run
from tarflow.sharing.card import TEMPLATES
from tarflow.sharing.push import write_files

APP, REQUIREMENTS, MODEL = "app.py", "requirements.txt", "model"
GRADIO = "6.31.0"  # the one that was tested, as in constraints.txt
PYTHON = "3.11"  # the oldest that tarflow runs on


def write_space(run: Run, out: Path, title: str, licence: str | None = None, requirement: str | None = None) -> None:
    """Fill a directory with a Space: its description, the program that it starts, what that needs, and the model.

    Args:
        title: what the Space is called. licence: of the weights, as the hub names it; None says nothing of it.
        requirement: what pip installs tarflow by; None is this version by its name.
    """
    facts = {
        "title": title,
        "sdk": "gradio",
        "sdk_version": GRADIO,
        "python_version": PYTHON,
        "app_file": APP,
        "license": licence,
    }
    text = TEMPLATES.get_template("space.md").render(title=title, app=APP, requirements=REQUIREMENTS, model=MODEL)
    storage.write_text(out / CARD_FILE, card_text({k: v for k, v in facts.items() if v is not None}, text))
    storage.write_text(out / APP, TEMPLATES.get_template("app.py.txt").render(model=MODEL))
    storage.write_text(out / REQUIREMENTS, f"{requirement or f'tarflow[ui]=={__version__}'}\n")
    (out / MODEL).mkdir()
    write_files(run, out / MODEL)
    if (scores := run.path / HELD_OUT_FILE).exists():  # numbers alone, by which the page says how usual a score is
        shutil.copyfile(scores, out / MODEL / HELD_OUT_FILE)
