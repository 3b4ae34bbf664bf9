"""Completion is what a shell makes of the printed script, once it has sourced it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tarflow.cli import COMMANDS, main
from tarflow.cli.completion import SHELLS, options_of, script


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        (directory / shell).write_text(script(shell))
    return directory


def completed(shell: str, scripts: Path, *words: str) -> list[str]:
    """What a shell offers for the last of the words."""
    if (program := shutil.which(shell)) is None:
        pytest.skip(f"there is no {shell} here")
    typed = " ".join(f"'{word}'" for word in words)
    if shell == "bash":
        options = ["--norc", "--noprofile"]
        code = f"""source ./bash; complete -p tarflow >&2
        COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _tyro_tarflow; printf '%s\\n' "${{COMPREPLY[@]}}" """
    else:  # of a file that lies in the fpath, zsh makes a function
        options = ["-f"]
        code = f"""_describe() {{ print -l -- ${{(P)2%%:*}} }}; _files() {{ print files }}
        words=({typed}); CURRENT={len(words)}; . ./zsh"""
    ended = subprocess.run([program, *options, "-c", code], cwd=scripts, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    if shell == "bash":
        assert ended.stderr == "complete -o default -F _tyro_tarflow tarflow\n"
    return ended.stdout.split()


@pytest.mark.parametrize("shell", SHELLS)
def test_commands_and_options_are_completed(shell: str, scripts: Path) -> None:
    assert completed(shell, scripts, "tarflow", "tr") == ["train"]
    assert set(COMMANDS) <= set(completed(shell, scripts, "tarflow", ""))
    assert {"--resume", "--recipe"} <= set(completed(shell, scripts, "tarflow", "train", "--re"))
    assert completed(shell, scripts, "tarflow", "export", "digits", "--wh") == ["--what"]
    assert completed(shell, scripts, "tarflow", "export", "digits", "--what", "") == ["log_prob", "encode", "step"]


def test_it_is_printed_and_a_wrong_shell_is_one_line(scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-completion", "bash"]) == 0
    assert capsys.readouterr().out == (scripts / "bash").read_text()
    for words in ([], ["tcsh"], ["bash", "zsh"]):
        assert main(["--print-completion", *words]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err == f"tarflow: error: --print-completion: expected bash or zsh, got {' '.join(words)!r}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_options(command: str) -> None:
    assert isinstance(options_of(command), type)
