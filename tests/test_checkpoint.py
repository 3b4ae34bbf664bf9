"""What a run leaves on disk is found, read, pruned and refused as it says."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from flow_cases import build
from tarflow import checkpoint, digests, storage
from tarflow.checkpoint import Run
from tarflow.config import ConfigError, DataConfig, RunConfig, TrainingConfig
from tarflow.tensor_files import tensors_digest

FLOW = build("conditional", torch.float32)
CONFIG = RunConfig(FLOW.config, DataConfig(levels=17), TrainingConfig(steps=9))


def save(run: Path, *steps: int) -> None:
    run.mkdir(exist_ok=True)
    for step in steps:
        checkpoint.save_checkpoint(run, step, FLOW, CONFIG, {"step": step, "tensor": torch.full((2,), step)})


def test_a_checkpoint_comes_back_and_is_a_run_of_its_own(tmp_path: Path) -> None:
    save(tmp_path / "run", 7)
    path = tmp_path / "run" / "checkpoints" / "step-7"
    state = checkpoint.load_state(path)
    assert state["step"] == 7 and torch.equal(state["tensor"], torch.full((2,), 7))
    run = checkpoint.open_run(path)
    assert run.config == CONFIG and run.levels == 17
    x = torch.randn(3, 1, 4, 4)
    assert torch.equal(run.flow.log_prob(x), FLOW.log_prob(x))


def test_order_is_by_step_and_not_by_name(tmp_path: Path) -> None:
    save(tmp_path, 9, 100, 20)
    (tmp_path / "checkpoints" / "step-x").mkdir()
    (tmp_path / "checkpoints" / ".step-500.partial-1").mkdir()
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["step-9", "step-20", "step-100"]
    assert checkpoint.latest_checkpoint(tmp_path).name == "step-100"
    assert checkpoint.latest_checkpoint(tmp_path / "nowhere") is None


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, 5)
    checkpoint.remove_old_checkpoints(tmp_path, 2, best_step=2)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["step-2", "step-4", "step-5"]


def test_a_run_without_a_best_yet_opens_at_its_last_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 3)
    checkpoint.write_config(tmp_path, CONFIG)
    assert checkpoint.open_run(tmp_path).path.name == "step-3"


def test_sections_that_are_not_known_are_left_out(tmp_path: Path) -> None:
    checkpoint.write_config(tmp_path, RunConfig(FLOW.config))
    assert '"data"' not in (tmp_path / "config.json").read_text()
    run = Run(tmp_path, FLOW, checkpoint.read_config(tmp_path))
    assert (run.levels, run.noise, run.sigma, run.class_names) == (256, "uniform", None, ("0", "1", "2"))


def test_an_unknown_field_is_refused_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model": {"image_size": 4, "patchsize": 2}}')
    with pytest.raises(ConfigError, match=r"config\.json\.model\.patchsize.*patch_size"):
        checkpoint.read_config(tmp_path)


def test_a_hub_directory_says_nothing_of_the_machine_and_a_run_on_it_forgets_nothing(tmp_path: Path) -> None:
    data = DataConfig("/home/someone/photos", levels=17, place="/home/someone/photos")
    training = TrainingConfig(steps=9, init_from="/home/someone/runs/old (0123456789abcdef)")
    config = RunConfig(FLOW.config, data, training)
    checkpoint.write_config(tmp_path, config)
    text = (tmp_path / "config.json").read_text()
    assert "someone" not in text and json.loads(text)["data"]["source"] == "photos"
    assert json.loads(text)["training"]["init_from"] == "old (0123456789abcdef)"
    assert checkpoint.read_config(tmp_path) == config
    (tmp_path / "local.json").unlink()
    pushed = checkpoint.read_config(tmp_path)
    assert pushed.data == replace(data, source="photos", place="")
    assert pushed.training == replace(training, init_from="old (0123456789abcdef)")


def test_names_and_relative_paths_stay_as_they_were_typed(tmp_path: Path) -> None:
    for source, place in (("digits", ""), ("hub:owner/name", ""), ("data/photos", "/somewhere/data/photos")):
        config = RunConfig(FLOW.config, DataConfig(source, place=place))
        folder = tmp_path / source.replace("/", "-")
        folder.mkdir()
        checkpoint.write_config(folder, config)
        assert json.loads((folder / "config.json").read_text())["data"]["source"] == source
        assert (folder / "local.json").exists() == bool(place)
        assert checkpoint.read_config(folder) == config


def test_what_somebody_wrote_into_the_config_goes_before_what_was_kept_of_places(tmp_path: Path) -> None:
    """config.json is there to be edited; and of before local.json, it has the place itself."""
    config = RunConfig(FLOW.config, DataConfig("/old/photos", place="/old/photos"))
    checkpoint.write_config(tmp_path, config)
    for edited in ({"source": "/new/photos"}, {"source": "photos", "place": "/new/photos"}):
        sections = json.loads((tmp_path / "config.json").read_text())
        sections["data"] |= edited
        (tmp_path / "config.json").write_text(json.dumps(sections))
        found = checkpoint.read_config(tmp_path).data
        assert (found.source, found.place) == (edited["source"], edited.get("place", ""))


@pytest.mark.parametrize("text", ["[]", '{"source": 3}', '{"somewhere": "else"}', "{"])
def test_places_that_cannot_be_read_are_named(text: str, tmp_path: Path) -> None:
    checkpoint.write_config(tmp_path, CONFIG)
    (tmp_path / "local.json").write_text(text)
    with pytest.raises(ValueError, match=r"local\.json"):
        checkpoint.read_config(tmp_path)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("import pathlib; pathlib.Path('exploded').touch()",))


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps({"step": Bomb()})], ids=["empty", "garbage", "code"])
def test_a_state_that_is_none_is_refused_and_never_executed(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"state\.pt: damaged.*training run"):
        checkpoint.load_state(tmp_path)
    torch.save({"step": Bomb()}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt: damaged.*training run"):
        checkpoint.load_state(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_a_truncated_state_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    file = tmp_path / "checkpoints" / "step-1" / "state.pt"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"state\.pt"):
        checkpoint.load_state(file.parent)


def test_metrics_are_rewound_to_a_step_and_a_cut_off_line_is_dropped(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.append_metrics(tmp_path, {"step": step, "loss": step / 2})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    assert [m["step"] for m in checkpoint.read_metrics(tmp_path)] == [1, 2, 3]
    checkpoint.rewind_metrics(tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == [
        '{"step": 1, "loss": 0.5}',
        '{"step": 2, "loss": 1.0}',
    ]


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ConfigError, match=r"metrics\.jsonl:2"):
        checkpoint.read_metrics(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 2, "loss": "low"}',
        '{"step": 2, "loss": [1]}',
        '{"step": 2, "loss": true}',
        '{"step": true, "loss": 1}',
        '{"step": -1}',
        '{"step": 1' + "0" * 400 + "}",
        '{"step": 2, "seconds": 1' + "0" * 400 + "}",
        '{"step": 2, "seconds": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"step": 2.0}',
    ],
)
def test_metrics_that_are_no_numbers_are_an_error_that_names_the_line(line: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "loss": null, "lr": NaN}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(ConfigError, match=r"metrics\.jsonl:2: expected a JSON object of numbers with a step"):
        checkpoint.read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": null, "lr": NaN}\n')
    assert len(checkpoint.read_metrics(tmp_path)) == 1


def test_a_config_of_more_layers_than_the_weights_have_is_refused_before_they_are_made(tmp_path: Path) -> None:
    FLOW.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    sections = json.loads(text)
    sections["model"]["layers"] = [2000] * 2
    (tmp_path / "config.json").write_text(json.dumps(sections))
    with pytest.raises(ValueError, match=r"model.safetensors: has [0-9]+ tensors, too few for the 4000 layers"):
        checkpoint.open_run(tmp_path)


def test_pruning_takes_a_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    save(tmp_path / "run", 1, 2)
    first = tmp_path / "run" / "checkpoints" / "step-1"
    first.rename(tmp_path / "elsewhere")
    first.symlink_to(tmp_path / "elsewhere")
    checkpoint.remove_old_checkpoints(tmp_path / "run", 1, None)
    assert [path.name for path in first.parent.iterdir()] == ["step-2"]
    assert checkpoint.damage(tmp_path / "elsewhere") is None


def test_metrics_that_are_not_finite_are_null_on_the_disk(tmp_path: Path) -> None:
    """RFC 8259 knows no NaN. A step that is not finite has some, and an evaluation of one image."""
    values = {"step": 1, "loss": math.nan, "standard_error": math.inf}
    checkpoint.append_metrics(tmp_path, values)
    file = tmp_path / checkpoint.METRICS_FILE
    assert file.read_text() == '{"step": 1, "loss": null, "standard_error": null}\n'
    (entry,) = checkpoint.read_metrics(tmp_path)
    assert entry["step"] == 1 and math.isnan(entry["loss"]) and math.isnan(entry["standard_error"])
    file.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1.0}\n')  # as they once were
    checkpoint.rewind_metrics(tmp_path, 1)
    assert file.read_text() == '{"step": 1, "loss": null}\n'


def test_json_is_written_in_one_place() -> None:
    """So that none of it holds NaN: by `to_json`, but for messages between processes and the head of a safetensors
    file, whose words have an order and no spaces."""
    source = Path(checkpoint.__file__).parent
    writers = {path.name for path in source.rglob("*.py") if re.search(r"json\.dumps?\(", path.read_text())}
    assert writers == {"jsontext.py", "tensor_files.py"}


# --- what cannot be read, and what is not on the disk yet -----------------------------------------------------------


@pytest.mark.parametrize("name", ["digests.json", "model.safetensors", "state.pt", "config.json"])
def test_a_checkpoint_that_the_disk_cannot_read_is_passed_over_with_a_word(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by a damaged file, whose contents tell, but by a disk or a permission that gives none."""
    save(tmp_path, 1, 2)
    newest = tmp_path / "checkpoints" / "step-2"
    for module, function in ((digests, "file_facts"), (Path, "read_text")):
        real = getattr(module, function)

        def failing(path: Path, *rest: Any, real: Any = real, **named: Any) -> Any:
            if Path(path) == newest / name:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            return real(path, *rest, **named)

        monkeypatch.setattr(module, function, failing)
    assert checkpoint.damage(newest) == f"{name}: Input/output error"
    with pytest.warns(storage.DamageWarning, match=rf"step-2/{name}: Input/output error; going back to .*step-1"):
        found = checkpoint.sound_checkpoint(tmp_path)
    assert found is not None and found.name == "step-1"


def test_a_checkpoint_without_digests_is_damaged(tmp_path: Path) -> None:
    save(tmp_path, 1)
    step = tmp_path / "checkpoints" / "step-1"
    (step / "digests.json").unlink()
    assert checkpoint.damage(step) == "digests.json: missing, so that nothing tells what was written"


@pytest.mark.parametrize("name", checkpoint.MODEL_FILES)
def test_a_damaged_step_is_not_opened(name: str, tmp_path: Path) -> None:
    save(tmp_path, 1)
    file = tmp_path / "checkpoints" / "step-1" / name
    data = bytearray(file.read_bytes())
    data[-9] ^= 1 if name.endswith("tensors") else 0x20
    file.write_bytes(data)
    with pytest.raises(ValueError, match=rf"step-1/{name}: damaged"):
        checkpoint.open_run(file.parent)


def test_metrics_are_on_the_disk_before_the_checkpoint_that_goes_on_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines that only the system's memory holds are gone with the power, and nobody writes them a second time."""
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename
    name_of = {}

    def noted(descriptor: int) -> None:
        status = os.fstat(descriptor)
        calls.append(name_of.get((status.st_dev, status.st_ino), "another"))
        fsync(descriptor)

    for step in (1, 2):
        checkpoint.append_metrics(tmp_path, {"step": step, "loss": 1.0})
    status = (tmp_path / checkpoint.METRICS_FILE).stat()
    name_of[status.st_dev, status.st_ino] = "metrics"
    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "rename", lambda a, b: (calls.append(Path(b).name), rename(a, b)))
    save(tmp_path, 2)
    assert "metrics" in calls[: calls.index("step-2")]


def test_a_checkpoint_of_a_run_without_metrics_is_one(tmp_path: Path) -> None:
    save(tmp_path, 2)
    assert checkpoint.damage(tmp_path / "checkpoints" / "step-2") is None


def test_the_digest_of_weights_is_that_of_a_copy_and_of_no_others(tmp_path: Path) -> None:
    """Of ours it stands in the header; a file of somebody else is read to its end."""
    FLOW.save_pretrained(tmp_path / "one")
    FLOW.save_pretrained(tmp_path / "two")
    build("conditional", torch.float32, seed=1).save_pretrained(tmp_path / "other")
    one, two, other = (checkpoint.weights_digest(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two == tensors_digest(FLOW.state_dict()) != other
    file = tmp_path / "one" / "model.safetensors"
    save_file(FLOW.state_dict(), file)
    foreign = checkpoint.weights_digest(tmp_path / "one")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert checkpoint.weights_digest(tmp_path / "one") != foreign


def test_the_noise_of_a_run_is_that_of_its_training_and_uniform_where_nothing_is_known() -> None:
    def run(training: TrainingConfig | None) -> Run:
        return Run(Path("run"), FLOW, RunConfig(FLOW.config, None, training))

    for training, noise, sigma in (
        (None, "uniform", None),
        (TrainingConfig(steps=1, noise="uniform", noise_std=0.3), "uniform", None),
        (TrainingConfig(steps=1, noise_std=0.3), "gaussian", 0.3),
    ):
        assert (run(training).noise, run(training).sigma) == (noise, sigma)
