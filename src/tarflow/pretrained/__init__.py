"""Which weights come along? A hub directory each: `config.json`, `model.safetensors`, and their card, `README.md`.

A name of one stands wherever a RUN does, and here is the one place that finds a RUN by a path, a name, or as a model of
the hub (`hub`). The card begins with what is known of the model, one `name: JSON` a line
between two lines of dashes, which is YAML too, as a hub wants it. `benchmarks.ship` writes all of this.
"""

from __future__ import annotations

import contextlib
import difflib
import json
from pathlib import Path
from typing import Any

from tarflow import hub
from tarflow.jsontext import to_json

ROOT = Path(__file__).resolve().parent
CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
TABLE_SECTION = "table"  # of a config.json: the flow is one on the columns of a table (`tarflow.tables`)
MOST_BYTES = 8_000_000  # of all of them together: everybody downloads them with the package
_FENCE = "---"


def names() -> list[str]:
    """The models that come with the package, in alphabetical order.

    >>> "digits" in names()
    True
    """
    return sorted(file.parent.name for file in ROOT.glob(f"*/{CONFIG_FILE}"))


def located(run: str | Path) -> Path:
    """The directory that a RUN means: a path that exists, or else the model of the package with that name.

    Else that of a model of the hub, `owner/name@revision`, which is fetched where it is not here; a `Path` is none.
    Raises FileNotFoundError that names those known, or what `hub.fetched` raises.
    """
    path, name = Path(run), str(run)
    if path.exists():
        return path
    if name in names():
        return ROOT / name
    if isinstance(run, str) and (model := hub.hub_id(run)) is not None:
        return hub.fetched(model)
    near = difflib.get_close_matches(name, names(), 1)
    hint = f"; perhaps {near[0]}?" if near else ""
    raise FileNotFoundError(
        f"{name}: no such directory; expected a run, a directory with {CONFIG_FILE}, one of the models that come "
        f"along: {', '.join(names())}, or of the hub: {hub.PREFIX}OWNER/NAME{hint}"
    )


def is_table_run(path: str | Path) -> bool:
    """Whether a directory is that of a flow on the columns of a table; not of one that is damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError):  # whoever opens it says what is wrong
        return TABLE_SECTION in json.loads((Path(path) / CONFIG_FILE).read_text(encoding="utf-8"))
    return False


def name_of(path: Path) -> str | None:
    """The name of the model in a directory that is not to be written to: of the package, or of the hub; else None."""
    path = path.resolve()
    return path.name if path.parent == ROOT else hub.name_of(path)


def facts(name: str) -> dict[str, Any]:
    """What is known of a model that comes along: what its card says, the images that its config says, and its size.

    Raises OSError or ValueError naming the file where they are not to be had.
    """
    place = ROOT / name
    model = json.loads((place / CONFIG_FILE).read_text(encoding="utf-8"))["model"]
    size = model["image_size"]
    height, width = size if isinstance(size, list) else (size, size)
    return {
        "name": name,
        **read_card(place / CARD_FILE),
        "image_shape": [model["channels"], height, width],
        "classes": model["num_classes"],
        "megabytes": sum(file.stat().st_size for file in place.iterdir()) / 1e6,
    }


def read_card(file: Path) -> dict[str, Any]:
    """The first lines of a card, from `---` to `---`, each `name: JSON`."""
    lines = file.read_text(encoding="utf-8").splitlines()
    try:
        end = lines.index(_FENCE, 1)
        pairs = [line.partition(": ")[::2] for line in lines[1:end]]
        return {key: json.loads(value) for key, value in pairs}
    except (ValueError, IndexError) as error:
        raise ValueError(f"{file}: expected lines `name: JSON` between two lines {_FENCE} ({error})") from None


def card_text(facts: dict[str, Any], text: str) -> str:
    """A card: the facts, from which `read_card` reads them, and the text below."""
    lines = [f"{key}: {to_json(value)}" for key, value in facts.items()]
    return "\n".join([_FENCE, *lines, _FENCE, "", text.strip(), ""])
