"""Signals raise in the main thread, but not in the middle of what MLflow does."""

from __future__ import annotations

import importlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from entrypoints import _interrupts

BOTH = [
    (signal.SIGTERM, _interrupts.Terminated),
    (signal.SIGHUP, _interrupts.Terminated),
    (signal.SIGINT, KeyboardInterrupt),
]


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number, _ in BOTH}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    _interrupts.install()
    _interrupts.begin()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def inside(module: str, number: int, steps: list[str]) -> None:
    """Send the signal from a function of `module` that needs a while for its two steps."""
    code = """if True:
        def work():
            os.kill(os.getpid(), number)
            steps.append("one")
            time.sleep(0.3)
            steps.append("two")
    """
    names: dict[str, Any] = {"__name__": module, "os": os, "time": time}
    names |= {"number": number, "steps": steps}
    exec(code, names)
    names["work"]()


@pytest.mark.parametrize(("number", "error"), BOTH)
@pytest.mark.parametrize("module", ["mlflow.store.tracking", "sqlalchemy.engine.base"])
def test_a_call_of_mlflow_is_finished_first(
    number: int, error: type[BaseException], module: str
) -> None:
    steps: list[str] = []

    def work() -> None:
        inside(module, number, steps)
        time.sleep(5)
        steps.append("three")

    with pytest.raises(error):
        work()
    assert steps == ["one", "two"]


@pytest.mark.parametrize(("number", "error"), BOTH)
def test_elsewhere_it_comes_at_once(number: int, error: type[BaseException]) -> None:
    steps: list[str] = []
    with pytest.raises(error):
        inside("colazero.runs", number, steps)
    assert "two" not in steps


def test_a_call_without_end_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_interrupts, "PATIENCE_SEC", 0.1)
    steps: list[str] = []
    with pytest.raises(_interrupts.Terminated):
        inside("mlflow.tracking", signal.SIGTERM, steps)
    assert steps == ["one"]


@pytest.mark.parametrize(("number", "error"), BOTH)
def test_the_way_out_is_broken_off_by_a_second_ctrl_c_alone(
    number: int, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        os.kill(os.getpid(), number)
    for later in (signal.SIGTERM, signal.SIGHUP):  # as `mlflow run` and a closing terminal do
        os.kill(os.getpid(), later)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_what_still_waits_when_the_clean_up_begins_never_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C reaches us and `mlflow run`, whose SIGTERM comes while ours waits for MLflow."""
    monkeypatch.setattr(_interrupts, "AGAIN_SEC", 0.2)
    steps: list[str] = []
    inside("mlflow.tracking", signal.SIGINT, steps)
    with pytest.raises(_interrupts.Terminated):
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.5)


@pytest.mark.parametrize(("number", "error"), BOTH)
def test_an_import_is_finished_first(
    number: int, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(_interrupts, "PATIENCE_SEC", 0.0)
    name = f"slow_to_import_{number}"
    code = f"import os, time; os.kill(os.getpid(), {int(number)}); time.sleep(0.3); whole = True"
    (tmp_path / f"{name}.py").write_text(code)

    def work() -> None:
        importlib.import_module(name)
        time.sleep(5)

    with pytest.raises(error):
        work()
    assert importlib.import_module(name).whole


def test_what_comes_while_libraries_are_imported_waits_for_the_program() -> None:
    _interrupts.install()
    steps: list[str] = []
    inside("colazero.settings", signal.SIGTERM, steps)
    assert steps == ["one", "two"]

    def program() -> None:
        _interrupts.begin()
        time.sleep(5)

    with pytest.raises(_interrupts.Terminated):
        program()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_the_shell_ignores_stays_ignored(number: int) -> None:
    signal.signal(number, signal.SIG_IGN)
    _interrupts.install()
    _interrupts.begin()
    os.kill(os.getpid(), number)
