"""Command lines of benchmarks and studies: help without any work, and a mistake is a sentence."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from colazero.settings import PRUNING

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPTS = sorted(
    f"{folder.name}/{file.stem}"
    for folder in (FOLDER, FOLDER.with_name("studies"))
    for file in folder.glob("*.py")
    if "\ndef main() -> None:" in file.read_text()
)
OF_A_CELL = tuple(f"benchmarks/{name}" for name in ("cell", "evaluation", "quantizers", "suite"))
"""Those that take the parameters of an entry point."""


def ended(script: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """Run a script as a program and return what it ends with."""
    file = FOLDER.parent / f"{script}.py"
    monkeypatch.setattr(sys, "argv", [str(file), *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(file), run_name="__main__")
    return caught.value.code


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_what_stands_at_the_head_of_the_file(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(script, monkeypatch, "--help") == 0
    head = (FOLDER.parent / f"{script}.py").read_text().partition('"""')[2].partition('"""')[0]
    assert " ".join(head.split()[:8]) in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_argument_that_is_none_ends_with_2(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(script, monkeypatch, "--nonsense=1") == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("script", OF_A_CELL)
@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--quant_bits=5", "quant_bits='5': must be 2, 3, 4 or 8"),
        ("--preset=nobody", "unknown preset 'nobody'"),
        ("--corpus", "expected one argument"),
    ],
)
def test_a_wrong_parameter_is_told_before_anything_is_measured(
    script: str,
    argument: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ended(script, monkeypatch, argument) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("script", OF_A_CELL)
def test_a_model_that_is_none_is_told(
    script: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # from where a benchmark may go elsewhere
    name = "--models=./nowhere" if script.endswith("suite") else "--model=./nowhere"
    assert ended(script, monkeypatch, "--preset=demo", name) == 2
    assert "error: model directory './nowhere' does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["ratios", "growth:2", "method:cola", "method:random"])
def test_selecting_is_measured_at_a_toy_size(
    part: str,
    tiny_llama: Path,
    corpus_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = [f"--model={tiny_llama}", f"--proxy={tiny_llama}", f"--corpus=file:{corpus_file}"]
    size = ["--windows=8", "--tokens=64", "--rounds=1"]
    monkeypatch.setattr(sys, "argv", ["selection.py", *own, *size, f"--part={part}"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    runpy.run_path(str(FOLDER / "selection.py"), run_name="__main__")
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all(value > 0 for name, value in row.items() if "_sec" in name or "_over_" in name)
    assert row["peak_gib"] > 0


def test_quantizers_are_measured_beside_onepass_at_a_toy_size(
    tiny_llama: Path,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    corpus = f"file:{corpus_file}"
    given = [f"--model={tiny_llama}", f"--corpus={corpus}", f"--eval_corpora={corpus}"]
    given += ["--preset=demo", "--seq_len=64", "--n_calibration_samples=4", "--eval_windows=2"]
    given += ["--method=random", "--device=cpu"]
    monkeypatch.setattr(sys, "argv", ["quantizers.py", "--json", *given])
    monkeypatch.setattr(sys, "path", list(sys.path))
    runpy.run_path(str(FOLDER / "quantizers.py"), run_name="__main__")
    mlflow.set_tracking_uri(before)
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(rows) == {"onepass", "awq", *PRUNING}
    for row in rows.values():
        assert 0 < row["quantize_sec"] < row["total_sec"]
        assert row["total_ratio"] == pytest.approx(
            row["total_sec"] / rows["onepass"]["total_sec"], abs=0.01
        )


@pytest.mark.whole
def test_selecting_is_measured_as_a_whole_in_processes_of_its_own(
    tiny_llama: Path, corpus_file: Path, tmp_path: Path
) -> None:
    own = [f"--model={tiny_llama}", f"--corpus=file:{corpus_file}", "--windows=8", "--tokens=64"]
    wanted = ["--rounds=1", "--growth=2", f"--figure={tmp_path / 'f.png'}"]
    done = subprocess.run(
        [sys.executable, str(FOLDER / "selection.py"), *own, *wanted, "--json"],
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["second_process_sec"] > 0
    assert [size["times"] for size in found["growth"]] == [2]
    assert (tmp_path / "f.png").stat().st_size > 1_000


def test_the_peak_of_memory_is_the_process_s_own() -> None:
    peak_resident = runpy.run_path(str(FOLDER / "_harness.py"))["peak_resident"]
    ballast = b"1" * 2**29
    assert peak_resident() > 0.5
    code = (
        f"import runpy; print(runpy.run_path({str(FOLDER / '_harness.py')!r})['peak_resident']())"
    )
    child = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert 0 < float(child.stdout) < len(ballast) / 2**31
