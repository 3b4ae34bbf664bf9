"""A setting as a value: what it refuses, what it is in words, and what lies on disk."""

import pytest

from tarflow import Guidance
from tarflow.config import ConfigError, from_dict, to_dict
from tarflow.sampling.setting import Setting, StoredSetting


def test_a_setting_is_guidance_and_denoising():
    assert Setting() == Setting(Guidance(0.0), None)
    assert str(Setting(Guidance(0.2, temperature=0.3))) == "guidance 0.2 (linear, paper, temperature 0.3), not denoised"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"guidance": {"scale": -1.0}}, "guidance scale: expected a number of 0 or more, got -1"),
        ({"guidance": {"temperature": 0.0}}, "guidance temperature: expected a positive number"),
        ({"guidance": {"rule": "papre"}}, "rule: expected 'paper' or 'stable', got 'papre'"),
        ({"guidance": {"scale": float("nan")}}, "scale: expected a number"),
        ({"guidance": 2.0}, "guidance: expected a table of fields, got 2.0"),
        ({"denoise": 0.0}, "denoise: expected a positive number or nothing, got 0.0"),
    ],
)
def test_what_it_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        Setting(**fields)


def test_a_stored_setting_survives_json_and_is_strict():
    stored = StoredSetting("abc", Setting(Guidance(1.0), denoise=0.1), "FD-Classifier", 1.5, 500, 4)
    assert from_dict(StoredSetting, to_dict(stored)) == stored
    assert str(stored) == (
        "guidance 1 (linear, paper), denoised with σ=0.1: the best of 4 by FD-Classifier (1.5, 500 samples)"
    )
    values = to_dict(stored)
    values["setting"]["guidance"]["scal"] = 2
    with pytest.raises(ConfigError, match="setting.guidance.scal: no such field; perhaps scale"):
        from_dict(StoredSetting, values)


@pytest.mark.parametrize(("compared", "words"), [(1, "the only one tried"), (2, "the best of 2"), (9, "the best of 9")])
def test_a_stored_setting_says_among_how_many_it_was_the_best(compared, words):
    stored = StoredSetting("abc", Setting(Guidance(1.0)), "FD-Classifier", 12.34567, 500, compared)
    assert str(stored) == f"{stored.setting}: {words} by FD-Classifier (12.35, 500 samples)"
