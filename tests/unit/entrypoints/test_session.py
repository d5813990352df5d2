"""What the entry points share: errors about a preset's value, missing values, quiet libraries."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from colazero.corpora.tokens import need_tokens
from colazero.errors import UserError, log_discreetly
from colazero.evaluation.perplexity import eval_windows
from colazero.suite_settings import parse, preset_names
from entrypoints import _session

MESSAGE = "seq_len=2048 is more than model 'm' takes: at most 1024."


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"preset": "auto", "model": "m"}, ["preset 'full'", "a model is named", "--preset=demo"]),
        ({"preset": "auto", "models": "m"}, ["preset 'full'", "--seq_len="]),
        ({"preset": "validation"}, ["preset 'validation'", "--seq_len="]),
        ({"preset": "demo", "seq_len": "2048"}, []),
        ({"preset": "mine.yaml"}, []),
    ],
)
def test_an_error_about_a_presets_value_names_the_preset(
    given: dict[str, str], words: list[str]
) -> None:
    said = _session.explained(MESSAGE, given)
    assert said.startswith(MESSAGE)
    assert (said == MESSAGE) == (not words)
    for word in words:
        assert word in said


def test_whatever_value_a_preset_has_is_explained_and_no_other() -> None:
    import yaml

    for preset in preset_names():
        file = _session.PRESET_DIR / f"{preset}.yaml"
        for name in yaml.safe_load(file.read_text()):
            assert preset in _session.explained(f"{name}='x': no.", {"preset": preset})
        assert _session.explained("sym='x': no.", {"preset": preset}) == "sym='x': no."


@pytest.mark.parametrize("name", ["seed", "status"])
def test_a_parameter_without_a_value_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["single.py", f"--{name}"])
    with pytest.raises(UserError, match=f"--{name} .*--{name}=VALUE. About it"):
        _session._read("", {name: "about it"})


@pytest.mark.parametrize("bars", [True, False])
def test_libraries_draw_bars_in_a_terminal_alone(
    bars: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")
    names = (*off, "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "TRANSFORMERS_VERBOSITY")
    for name in (*names, "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    log_discreetly(bars=bars)
    assert os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] == "false"
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"
    assert [os.environ.get(name) for name in off] == [None if bars else "1"] * len(off)


def test_a_stage_draws_nothing_in_a_log_file(capfd: pytest.CaptureFixture[str]) -> None:
    progress = _session.stage_bar("cell")("quantize")
    for done in (0, 1, 2):
        progress(done, 2)
    assert capfd.readouterr() == ("", "")


def test_a_single_run_names_one_seed() -> None:
    from colazero.settings import RunConfig

    with pytest.raises(UserError, match=r"seed='42-46'.*seeds=42-46"):
        parse(RunConfig, {"seed": "42-46"})


def test_a_corpus_too_small_for_what_a_preset_asks_is_explained() -> None:
    """Nobody typed 128 windows: a model was named."""
    calls = {
        "n_calibration_samples": lambda: need_tokens(100, 128, 2048, "toy"),
        "eval_windows": lambda: eval_windows(np.arange(100), 2048, "all", "toy"),
    }
    for name, call in calls.items():
        with pytest.raises(UserError) as caught:
            call()
        said = _session.explained(str(caught.value), {"preset": "auto", "model": "/my/model"})
        assert f"{name} comes from preset 'full'" in said
        assert f"--{name}=VALUE, or --preset=demo" in said
