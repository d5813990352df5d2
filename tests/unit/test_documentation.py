"""What the documentation tells to type works as it is printed: commands, parameters, imports."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from colazero.settings import RunConfig
from colazero.store import client
from colazero.suite_settings import SuiteConfig, parse

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
ROOMS = ("colazero", "analysis", "entrypoints", "examples")
SOURCES = [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]
ENTRY_POINTS: dict[str, Any] = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
LINE = re.compile(r"(?:mlflow run \.|python -m entrypoints\.\w+)[^\n`()]*")
"""A command as it is told: to the end of the line, or of what stands in backticks or brackets."""


def commands(file: Path) -> Iterator[list[str]]:
    """Yield the words of every command of ours that a file tells to type."""
    text = file.read_text(encoding="utf-8")
    text = re.sub(r"\\+\n\s*", " ", text)  # a line that goes on
    if file.suffix == ".md":
        outside = re.sub(r"```.*?```", "", text, flags=re.S)
        fenced = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.S))
        quoted = "\n".join(" ".join(one.split()) for one in re.findall(r"`([^`]+)`", outside))
        text = f"{fenced}\n{quoted}"
    for found in LINE.findall(text):
        told = found.partition(" #")[0].rstrip(".,:;")
        try:
            words = shlex.split(told)
        except ValueError:  # the quotation mark that ends the sentence around it
            words = shlex.split(told.rstrip(".,:;'\""))
        yield [word for word in words if not word.startswith("$")]


TOLD = [
    pytest.param(words, id=f"{file.name}: {' '.join(words)}"[:90])
    for file in (*PAGES, *SOURCES)
    for words in commands(file)
]


def given_by(words: list[str]) -> tuple[str, dict[str, str]]:
    """Return the entry point of a command and the parameters that it is given."""
    if words[0] == "python":
        entry, rest = words[2].removeprefix("entrypoints."), words[3:]
        pairs = [word.removeprefix("--") for word in rest if word.startswith("--")]
    else:
        entry = words[words.index("-e") + 1] if "-e" in words else ""
        pairs = [words[i + 1] for i, word in enumerate(words) if word == "-P"]
    return entry, {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def test_there_are_commands_to_look_at() -> None:
    assert len(TOLD) > 30


@pytest.mark.parametrize("words", TOLD)
def test_every_command_works_as_it_is_printed(words: list[str]) -> None:
    entry, given = given_by(words)
    if words[0] == "mlflow":
        assert words[words.index("--env-manager") + 1] in ("local", "uv"), "conda is not everywhere"
    if entry == "NAME":  # any of them
        return
    assert entry in ENTRY_POINTS
    known = {"status", "help"} | ENTRY_POINTS[entry]["parameters"].keys()
    assert given.keys() <= known
    kind = {"suite": SuiteConfig, "single": RunConfig}.get(entry)
    real = {k: v for k, v in given.items() if k not in ("status", "help", "force")}
    if kind is not None and not str(real.get("preset", "")).endswith(".yaml"):
        parse(kind, {name: value for name, value in real.items() if "…" not in value})


def blocks(file: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", file.read_text(encoding="utf-8"), flags=re.S)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda page: page.name)
def test_every_import_of_ours_in_a_snippet_is_there(page: Path) -> None:
    for block in blocks(page):
        for node in ast.walk(ast.parse(block)):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module and module.partition(".")[0] in ("colazero", "analysis", "entrypoints"):
                found = importlib.import_module(module)
                for name in node.names:  # type: ignore[union-attr]
                    assert hasattr(found, name.name) or importlib.import_module(
                        f"{module}.{name.name}"
                    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_that_is_linked_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_ours_that_is_named_is_there(page: Path) -> None:
    tests = {file.name for file in (ROOT / "tests").rglob("*.py")}
    for name in re.findall(r"(?:\w+/)*\w+\.py\b", page.read_text(encoding="utf-8")):
        room = name.partition("/")[0]
        if room in (*ROOMS, "tests", "benchmarks", "studies"):
            assert (ROOT / name).exists() or "NAME" in name, name
        elif name.startswith("test_"):
            assert name in tests, name


def test_the_address_in_the_readme_is_made_as_that_of_a_run() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (address,) = re.findall(r"`(http://127\.0\.0\.1:5000/\S*RUN_ID\S*)`", readme)
    assert address == client.page_address(client.LOCAL_PAGES, "1", "RUN_ID")
