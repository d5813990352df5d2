"""The environment is checked as parameters are, and what is set but empty is not set."""

from __future__ import annotations

from pathlib import Path

import pytest

from colazero import environment
from colazero.cache import cache_dir
from colazero.errors import UserError

WRONG = [
    *[("COLAZERO_PATIENCE", value) for value in ("abc", "-1", "nan", "inf", "1e999", "5 minutes")],
    *[("GPTQMODEL_CPU_WORKERS", value) for value in ("auto", "0", "1", "-2", "2.5")],
    ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "many"),
    ("MLFLOW_HTTP_REQUEST_TIMEOUT", "0"),
    ("HF_HUB_DOWNLOAD_TIMEOUT", "abc"),
    ("COLAZERO_CODE", "{"),
    ("COLAZERO_CODE", "[]"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_told_with_its_name(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        environment.check()
    assert str(caught.value).startswith(f"{name}={value!r}")


@pytest.mark.parametrize("empty", ["", "  "])
def test_what_is_empty_is_as_if_it_were_not_set(
    empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in environment.EMPTY_IS_UNSET:
        monkeypatch.setenv(name, empty)
    environment.check()
    assert environment.patience() == 30 * 60
    assert cache_dir() == Path("~/.cache/colazero").expanduser()
    assert environment.run_id() is None
    assert environment.experiment_id() is None
    assert environment.code_of_suite() is None


def test_right_values_are_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLAZERO_PATIENCE", "0.5")
    monkeypatch.setenv("COLAZERO_CACHE", str(tmp_path / "new"))
    monkeypatch.setenv("GPTQMODEL_CPU_WORKERS", "2")
    environment.check()
    assert environment.patience() == 30
    assert cache_dir() == tmp_path / "new"


def test_a_file_is_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("COLAZERO_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="COLAZERO_CACHE="):
        environment.check()
