"""What decides a result: the content of the files that a run imports, and nothing else here."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from colazero import reuse
from colazero.settings import RunConfig, canonical_key

Keys = Callable[..., str]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package, under git, whose files are taken for those that are imported."""
    copy = tmp_path / "colazero"
    shutil.copytree(reuse.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(reuse, "PACKAGE", copy)
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *command], check=True)
    return tmp_path


def key(**given: object) -> str:
    reuse.contents.cache_clear()
    config = RunConfig.model_validate(given)
    return canonical_key(config, **reuse.code_context(config))


@pytest.fixture(autouse=True)
def _forget() -> None:
    reuse.contents.cache_clear()


@pytest.mark.parametrize(
    "file",
    [
        *("pipeline.py", "quantizers/onepass.py", "evaluation/perplexity.py", "corpora/sotu.py"),
        *("gptq/columns.py", "blocks/lockstep.py"),
        *("corpora/tokens.py", "models/source.py", "calibration/sets.py", "selection/features.py"),
        *("cache.py", "selection/__init__.py", "evaluation/downstream.py"),
    ],
)
def test_a_change_of_what_a_run_imports_is_another_key(project: Path, file: str) -> None:
    before, changed = key(), project / "colazero" / file
    changed.write_text(changed.read_text() + "\nCHANGED = 1\n")
    after = key()
    assert before != after
    subprocess.run(["git", "-C", str(project), "add", "."], check=True)
    assert key() == after, "whether it is tracked is all the same"


@pytest.mark.parametrize(
    "file",
    [
        *("my.yaml", "results/a.csv", "mlflow.db-journal", "docs/new.md", "notes.py", "README.md"),
        *("colazero/presets/mine.yaml", "colazero/suite/run.py", "colazero/suite/new.py"),
        *("colazero/store/record.py", "colazero/calibration/picture.py", "analysis/stats.py"),
        *(
            "colazero/selection/mine.py",
            "colazero/quantizers/gptqmodel.py",
            "colazero/corpora/c4.py",
        ),
    ],
)
def test_a_file_beside_changes_no_key(project: Path, file: str) -> None:
    before, beside = key(), project / file
    beside.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text((beside.read_text() if beside.exists() else "") + "\nCHANGED = 1\n")
    assert key() == before


def test_a_quantizers_file_counts_for_its_own_cells_alone(project: Path) -> None:
    before = key(), key(quantizer="gptqmodel")
    file = project / "colazero/quantizers/gptqmodel.py"
    file.write_text(file.read_text() + "\nCHANGED = 1\n")
    assert key() == before[0]
    assert key(quantizer="gptqmodel") != before[1]


def test_what_is_edited_while_a_process_runs_changes_nothing_in_it(project: Path) -> None:
    """Its modules are those that it imported; another of its cells may ask for more of them."""
    key(quantizer="none")
    file = project / "colazero/quantizers/gptqmodel.py"
    before, now = file.read_text(), RunConfig.model_validate({"quantizer": "gptqmodel"})
    wanted = reuse.code_context(now)
    file.write_text(before + "\nCHANGED = 1\n")
    assert reuse.code_context(now) == wanted
    file.write_text(before)


def test_what_differs_is_named() -> None:
    before = {"torch": "2.13.0", "model": "a", "source colazero/pipeline.py": "1", "numpy": "2"}
    now = {**before, "torch": "2.14.0", "model": "b", "source colazero/pipeline.py": "2"}
    now["source colazero/new.py"] = "3"
    assert reuse.differences(before, now) == (
        "the source of colazero/new.py, colazero/pipeline.py differs; model differs; "
        "torch was 2.13.0 and is 2.14.0"
    )
    assert reuse.differences(now, dict(now)) == ""
