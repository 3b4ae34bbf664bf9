"""`python -m benchmarks.compare` from its arguments to its table, on a small model and the stand-ins."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tarflow
from benchmark_cases import STAND_INS, small_flow
from benchmarks import compare, memory, official, rates, sampling, table
from benchmarks.options import PRESETS, command, parse
from benchmarks.sampling import Settings, prepare
from benchmarks.timing import Budget
from tarflow.interop import to_official
from tarflow.planning import devices as planning_rates

MODEL = ["--image-size", "8", "--width", "64", "--layers", "1", "1", "--classes", "3", "--threads", "1"]
QUICK = ["--official", str(STAND_INS), "--pairs", "2", "--device", "cpu", "--memory"]


@pytest.fixture(autouse=True)
def known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 1 GFLOP/s that reads 0.1 GB/s, and was disturbed while it read less than 100 kB."""
    for module in (rates, planning_rates):  # where it is asked by name, and where `square_rates` finds it
        monkeypatch.setattr(module, "matmul_rate", lambda *shape, **_: 1e9)
    monkeypatch.setattr(rates, "read_rate", lambda nbytes, device: 1e7 if nbytes <= 100_000 else 1e8)


def run(*arguments: str) -> dict[str, Any]:
    return compare.run([*QUICK, *arguments])


def test_everything_that_is_asked_for_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    where = ["--official", str(STAND_INS), "--gs-jacobi", str(STAND_INS), "--out", str(out)]
    growth = "--growth 4 16 --growth-batches 2 --growth-layers 1 --gs-windows 4"
    cases = "--batches 1 3 --pairs 2 --device cpu --memory --note trial"
    code = compare.main([*where, *MODEL, *growth.split(), *cases.split()])
    assert code == 0
    text, result = out.read_text(), json.loads(out.read_text())
    assert str(tmp_path) not in text
    assert str(STAND_INS) not in text
    assert "--official ML_TARFLOW" in result["command"]
    assert [(case["batch"], case["guidance"]) for case in result["cases"]] == [(1, 0), (1, 1), (3, 0), (3, 1)]
    assert [(case["tokens"], case["batch"]) for case in result["growth"]] == [(4, 2), (16, 2)]
    names = {"ours, auto", "ours, sequential", "ours, jacobi", "official", "gs-jacobi"}
    for case in [*result["cases"], *result["growth"]]:
        assert set(case["sides"]) == names
        assert case["floors"]["arithmetic_seconds"] == pytest.approx(case["work"]["flops"] / 1e9)
        for name, side in case["sides"].items():
            assert len(side["seconds"]) == (2 if case in result["cases"] else 1)
            assert side["best"] == min(side["seconds"])
            assert side["over_arithmetic_floor"] == side["best"] / case["floors"]["arithmetic_seconds"]
            assert set(side["faster_than"]) == (set() if name in result["others"] else {"official", "gs-jacobi"})
            if name.startswith("ours"):
                assert all(found["agrees"] for found in side["agreement"].values())
                assert len(side["iterations"]) == len(case["sides"]["ours, auto"]["iterations"])
    unguided, guided = result["cases"][2]["sides"], result["cases"][3]["sides"]
    assert set(unguided["ours, auto"]["agreement"]) == {"reference decode", "official code"}
    assert set(unguided["official"]["agreement"]) == {"reference decode"}
    assert set(guided["ours, auto"]["agreement"]) == {"official code"}
    assert unguided["ours, auto"]["agreement"]["official code"]["images"] == 3
    assert unguided["ours, sequential"]["iterations"] == [15, 15]
    assert unguided["ours, sequential"]["solvers"] == ["sequential", "sequential"]
    printed = capsys.readouterr().out
    assert printed.rstrip() == table.render(result)
    for needle in ("3, 1, ours, jacobi", "16 patches", "x cached-loop floor", "weights: trial"):
        assert needle in printed


def test_a_smaller_working_set_is_read_at_no_lower_rate() -> None:
    result = run(*MODEL, "--batches", "1", "8", "--guidance", "0", "--growth")
    small, large = result["cases"]
    assert small["work"]["cache_set"] < 100_000 < small["work"]["weight_set"]
    for case in (small, large):
        work = case["work"]
        expected = work["flops"] / 1e9 + (work["weight_bytes"] + work["cache_bytes"]) / 1e8
        assert case["floors"]["cached_loop_seconds"] == pytest.approx(expected)


def test_a_code_that_draws_something_else_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (STAND_INS / "transformer_flow.py").read_text()
    assert text.count("* log_scale[:, -1:].exp()") == 1
    wrong = text.replace("* log_scale[:, -1:].exp()", "* (1.01 * log_scale[:, -1:]).exp()")
    (tmp_path / "transformer_flow.py").write_text(wrong)
    arguments = ["--official", str(tmp_path), *QUICK[2:], *MODEL, "--guidance", "0", "--batches", "2", "--growth"]
    assert compare.main(arguments) == 1
    assert "DISAGREES: cases, batch 2, guidance 0: ours, auto is " in capsys.readouterr().out


def test_a_part_of_the_blocks_is_compared_and_its_time_scaled_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "interleave", lambda sides, *_: {name: [1.0] for name in sides})
    flow = small_flow()  # of 1, 2 and 1 layers, of which the last two blocks are decoded first
    loaded = {"official": official.load_module("official", STAND_INS)}
    subject = prepare(flow, loaded, {"official": STAND_INS}, "float32", 2, 3)
    case = sampling.measure(subject, Settings(), 3, 1.0, 1, Budget())
    assert case["sides"]["official"]["best"] == pytest.approx(4 / 3)
    assert case["sides"]["official"]["extrapolated_from_blocks"] == 2
    assert case["sides"]["ours, auto"]["best"] == 1
    assert len(case["sides"]["ours, auto"]["iterations"]) == 3  # ours ran whole
    assert case["sides"]["ours, auto"]["agreement"]["official code"]["agrees"]
    assert not sampling.disagreements(case)


def test_bf16_is_compared_in_float32_and_its_deviation_said(tmp_path: Path) -> None:
    torch.save(to_official(small_flow()), tmp_path / "weights.pt")
    weights = ["--weights", str(tmp_path / "weights.pt"), "--dtype", "bf16", "--official-blocks", "2"]
    result = run(*weights, "--batches", "3", "--growth", "--solvers", "sequential", "--reference-images", "2")
    assert result["weights"] == "given"
    assert not result["disagreements"]
    for case in result["cases"]:
        ours, theirs = case["sides"]["ours, sequential"], case["sides"]["official"]
        reference = "official code" if case["guidance"] else "reference decode"
        assert ours["agreement"][reference]["worst"] < 1e-3
        assert ours["agreement"][reference]["images"] == 2
        for side in (ours, theirs):
            assert 1e-3 < side["deviation"][reference]["worst"] < 1
        assert "agreement" not in theirs
    assert "bf16" in table.render(result)


def test_what_the_time_does_not_allow_is_listed() -> None:
    result = run(*MODEL, "--minutes", "1e-9", "--batches", "1", "--guidance", "0")
    assert result["cases"] == []
    assert result["skipped"][0] == "cases: 16 patches, batch 1, guidance 0"
    assert "not measured, out of time: growth: 1024 patches" in table.render(result)


def test_a_reference_that_takes_too_long_is_left_out() -> None:
    result = run(*MODEL, "--reference-seconds", "0", "--batches", "1", "--guidance", "0", "--growth")
    assert set(result["cases"][0]["sides"]["ours, auto"]["agreement"]) == {"official code"}


def small_subject() -> sampling.Subject:
    flow = small_flow(image_size=16, layers=(1, 1))
    loaded = {"official": official.load_module("official", STAND_INS)}
    return prepare(flow, loaded, {"official": STAND_INS}, "float32", 2, 1)


CACHE = 2 * 256 * 63 * 64 * 4  # keys and values of 256 sequences in one block, of which there is one at a time


@pytest.mark.parametrize("side", ["ours, sequential", "official"])
def test_memory_is_the_peak_over_what_was_there_before(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_this_process(command: list[str], input: str, **_: Any) -> Any:
        printed = io.StringIO()
        monkeypatch.setattr("sys.stdin", io.StringIO(input))
        with contextlib.redirect_stdout(printed):
            memory.main()
        return SimpleNamespace(returncode=0, stdout=printed.getvalue())

    ballast = torch.ones(50_000_000)  # 200 MB that were there, and are gone before it begins
    del ballast
    monkeypatch.setattr(memory.subprocess, "run", in_this_process)
    batch = 256 if side == "ours, sequential" else 16  # the stand-in is slow
    peak = memory.of_side(small_subject(), Settings(), side, batch, 0.0)
    assert (CACHE if batch == 256 else 100_000) < peak < 10 * CACHE


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own() -> None:
    assert CACHE < memory.of_side(small_subject(), Settings(), "ours, sequential", 256, 0.0) < 10 * CACHE
    with pytest.raises(RuntimeError, match="measures the memory of 'ours, none' failed: ValueError: solver"):
        memory.of_side(small_subject(), Settings(), "ours, none", 1, 0.0)


def test_a_preset_gives_way_to_what_is_typed() -> None:
    options = parse(["--official", "clone", "--preset", "gpu", "--pairs", "5", "--width", "128"])
    assert options.config == tarflow.TarFlowConfig(
        64, 2, width=128, layers=(8,) * 8, num_classes=1000, log_scale_bound=None
    )
    assert (options.dtype, options.batches, options.pairs) == ("bf16", PRESETS["gpu"]["batches"], 5)
    assert parse(["--official", "clone"]).dtype == "float32"
    assert parse(["--official", "clone", "--preset", "gpu", "--weights", "RUN"]).device == "cuda"


def test_the_command_keeps_no_path() -> None:
    argv = ["--official=/a", "--gs-jacobi", "/b", "--weights", "/c", "--out=/d", "--weights", "hard", "--batches", "1"]
    assert command(argv) == (
        "python -m benchmarks.compare --official=ML_TARFLOW --gs-jacobi GS_JACOBI --weights WEIGHTS --out=FILE.json "
        "--weights hard --batches 1"
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("place")
    (root / "empty").mkdir()
    shutil.copy(STAND_INS / "transformer_flow.py", root)
    torch.save({"weight": torch.zeros(2, 2)}, root / "foreign.pt")
    (root / "garbage.pt").write_bytes(b"garbage")
    small_flow(log_scale_bound=2.0).save_pretrained(root / "bounded")
    small_flow(num_classes=0).save_pretrained(root / "unconditional")
    return root


ERRORS = {
    "": "--official: missing; expected a clone of apple/ml-tarflow",
    "--official {root}/none": "none: no such directory; expected a clone of apple/ml-tarflow",
    "--official {root}/empty": "empty: no transformer_flow.py in it; expected a clone of apple/ml-tarflow",
    "--official {root} --gs-jacobi {root}": "no GS_Jacobi_sampling.py in it; expected a clone of encoreus/GS-Jacobi",
    "--official {root} --weights {root}/none": "none: no such run or file; expected one, or fresh or hard",
    "--official {root} --weights {root}/empty": "config.json: no such file",
    "--official {root} --weights {root}/foreign.pt": "foreign.pt: tensor blocks.0.pos_embed is missing",
    "--official {root} --weights {root}/garbage.pt": "garbage.pt: damaged, not written by torch.save",
    "--official {root} --weights {root}/bounded": "log_scale_bound: official checkpoints have an unbounded log-scale",
    "--official {root} --weights {root}/unconditional": "guidance scale 1.0: both branches are the same here",
    "--official {root} --weights {root}/bounded --width 64": "--width: comes with the weights",
    "--official {root} --width 65": "width: expected a multiple of head_dim 64, got 65",
    "--official {root} --solvers magic": "--solvers: expected some of auto, sequential, jacobi, got ['magic']",
    "--official {root} --solvers auto auto": "--solvers: expected each at most once",
    "--official {root} --batches 0": "--batches: expected positive numbers, got [0]",
    "--official {root} --batches x": "argument --batches: invalid int value: 'x'",
    "--official {root} --memory 5": "--memory: expected some of the batches [1, 16, 64], got [5]",
    "--official {root} --guidance -1": "--guidance: expected numbers of 0 or more, got [-1.0]",
    "--official {root} --growth 60": "--growth: expected squares above 1, as 64 is, got [60]",
    "--official {root} --pairs 0": "--pairs: expected a positive number, got 0",
    "--official {root} --minutes 0": "--minutes: expected a positive number, got 0.0",
    "--official {root} --dtype float16": "argument --dtype: invalid choice: 'float16'",
    "--official {root} --device cuda": "device: cuda is not available here",
    "--official {root} --no-such": "unrecognized arguments: --no-such",
    "--official {root} --preset tpu": "argument --preset: invalid choice: 'tpu'",
    "--official {root} --out {root}/none/x.json": "none: no such directory; --out is a file in one that exists",
    "--official {root} {small} --official-blocks 3": "--official-blocks: expected 1 to 2, got 3",
    "--official {stand_ins} --gs-jacobi {stand_ins} {small} --gs-windows 5": "--gs-windows: expected a divisor of 16",
    "--official {root} {small} --weights hard --image-size 4": "weights hard: no outputs of block 1 need 15 to 20",
}


@pytest.mark.parametrize(("arguments", "message"), ERRORS.items(), ids=list(ERRORS.values()))
def test_bad_input_is_one_line(place: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("CUDA is available here")
    filled = arguments.format(root=place, stand_ins=STAND_INS, small=" ".join(MODEL))
    assert compare.main(filled.split()) == 2
    printed = capsys.readouterr()
    *_, line = printed.err.splitlines()
    assert line.startswith("benchmarks.compare: error: ")
    assert message in line
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_what_is_not_a_number_does_not_agree() -> None:
    reference = torch.tensor([[1.0, 2.0], [4.0, 0.0]])
    images = torch.tensor([[1.0, 2.0], [4.002, 0.0], [9.0, 9.0]])  # the third has no reference
    found = sampling._compare(images, reference)
    assert found["worst"] == pytest.approx(0.0005, rel=1e-3)
    assert (found["images"], found["agrees"], found["share_beyond"]) == (2, True, 0)
    images[0, 0] = float("nan")
    found = sampling._compare(images, reference)
    assert (found["agrees"], found["share_beyond"]) == (False, 0.25)
