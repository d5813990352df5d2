"""MLproject, conda.yaml, pyproject.toml, the entry points and the configuration agree."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from colazero.corpora import CORPORA
from colazero.quantizers import QUANTIZERS
from colazero.selection import METHODS
from colazero.settings import RunConfig
from colazero.suite_settings import SuiteConfig, preset_names

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = yaml.safe_load((ROOT / "MLproject").read_text())
ENTRY_POINTS: dict[str, Any] = PROJECT["entry_points"]
EXTRAS = {
    "select": {"imatrix"},
    "quantize": {"calibration"},
    "single": {"force"},
    "clean": {"what", "suite", "do"},
    "export": {"run", "out"},
    "analyze": {
        *("suite", "suites", "experiment", "filter", "primary", "baseline", "metric", "direction"),
        *("margin", "alpha", "names", "out"),
    },
}
"""Parameters that are no settings of a run, by entry point; each has its help text there."""
WITHOUT_PRESET = ("analyze", "clean", "export")


def modules() -> set[str]:
    files = (ROOT / "entrypoints").glob("*.py")
    return {file.stem for file in files if not file.stem.startswith("_")}


def accepted(name: str) -> set[str]:
    """Return the parameters that the module of an entry point takes."""
    module = importlib.import_module(f"entrypoints.{name}")
    own = set(module.PARAMETERS) | EXTRAS.get(name, set())
    return own if name in WITHOUT_PRESET else own | {"preset"}


def call(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"entrypoints.{name}", *arguments],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "100", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_module_is_an_entry_point_and_the_other_way_round() -> None:
    expected = {"select", "quantize", "evaluate", "single", "suite", "analyze", "clean", "export"}
    assert set(ENTRY_POINTS) == modules() == expected


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_declared_parameter_is_in_its_command_once_and_bare(name: str) -> None:
    entry = ENTRY_POINTS[name]
    words = shlex.split(entry["command"])
    assert words[:3] == ["python", "-m", f"entrypoints.{name}"]
    # MLflow quotes a bare {x} safely; inside quotes of ours it would be a way into the shell.
    assert words[3:] == [f"--{x}={{{x}}}" for x in entry["parameters"]]
    assert '"' not in entry["command"]
    assert "'" not in entry["command"]


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_declared_parameter_is_accepted_and_the_other_way_round(name: str) -> None:
    assert set(ENTRY_POINTS[name]["parameters"]) == accepted(name)


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_defaults_live_in_the_configuration_alone(name: str) -> None:
    for parameter, about in ENTRY_POINTS[name]["parameters"].items():
        assert about == {"type": "string", "default": "auto"}, parameter


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_declared_parameter_is_a_field_or_a_known_extra(name: str) -> None:
    fields = SuiteConfig.model_fields if name == "suite" else RunConfig.model_fields
    known = {"preset", *fields} if name not in WITHOUT_PRESET else set()
    assert set(ENTRY_POINTS[name]["parameters"]) - known == EXTRAS.get(name, set())


@pytest.mark.parametrize(("name", "config"), [("single", RunConfig), ("suite", SuiteConfig)])
def test_every_field_can_be_set(name: str, config: Any) -> None:
    assert set(config.model_fields) <= set(ENTRY_POINTS[name]["parameters"])


def test_every_field_says_what_it_is() -> None:
    for name, field in {**RunConfig.model_fields, **SuiteConfig.model_fields}.items():
        assert field.description, name


def declared() -> dict[str, SpecifierSet]:
    """Return the project's own dependencies: name → versions that it takes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = map(Requirement, project["dependencies"])
    return {canonicalize_name(one.name): one.specifier for one in wanted}


def pinned(lines: list[str]) -> dict[str, str]:
    """Return name → version of lines that pin a package."""
    pins = [line.partition("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in pins}


def test_conda_yaml_pins_what_pyproject_asks_for_and_constraints_all_of_it() -> None:
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    pins, everything = pinned(pip), pinned((ROOT / "constraints.txt").read_text().splitlines())
    assert pins.keys() | {"pip"} == declared().keys()
    for name, version in pins.items():
        assert version in declared()[name], name
        assert everything[name] == version, name
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert next(one for one in conda if str(one).startswith("python=")).split("=")[1] in (
        SpecifierSet(python)
    )


def test_every_dependency_has_a_lower_bound_and_none_is_this_project() -> None:
    """MLflow names an environment by conda.yaml's text: a path in it would run another clone."""
    for name, versions in declared().items():
        assert any(one.operator == ">=" for one in versions), name
        assert name != "colazero"


def test_every_package_that_is_imported_is_declared() -> None:
    of_module = packages_distributions()
    own = {"colazero", "entrypoints", "analysis", "ray"}  # ray is an extra
    found: dict[str, str] = {}
    for folder in ("colazero", "entrypoints", "analysis"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names = [node.module]
                found |= {name.split(".")[0]: str(file) for name in names}
    used = found.keys() - sys.stdlib_module_names - own
    assert {"numpy", "torch", "mlflow"} <= used
    undeclared = {
        module: found[module]
        for module in used - {"triton"}  # comes with torch for CUDA, and is not needed without
        if not {canonicalize_name(d) for d in of_module.get(module, [])} & declared().keys()
    }
    assert not undeclared


def test_what_logs_the_use_of_gpus_is_installed_with_the_rest() -> None:
    """MLflow logs GPUs if it finds a module `pynvml`, and says nothing if it does not."""
    from mlflow.system_metrics.metrics import gpu_monitor

    assert "nvidia-ml-py" in declared()
    assert hasattr(gpu_monitor, "pynvml")
    assert "nvidia-ml-py" in packages_distributions()["pynvml"]


def test_no_uv_lock_overrides_conda_yaml() -> None:
    assert PROJECT["conda_env"] == "conda.yaml"
    assert not (ROOT / "uv.lock").exists()


def test_the_presets_are_part_of_the_package() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "presets/*.yaml" in setuptools["package-data"]["colazero"]


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_help_names_every_parameter(name: str) -> None:
    done = call(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    told = " ".join(done.stdout.split())
    for parameter in ENTRY_POINTS[name]["parameters"]:
        about = told.partition(f"--{parameter} VALUE ")[2].partition(" --")[0]
        assert re.search(r"\. Default: \S", about), parameter
        for value in values_of(parameter):
            assert re.search(rf"(?<![\w-]){re.escape(value)}(?![\w-])", about), (parameter, value)


def values_of(parameter: str) -> list[str]:
    """Return the words that a parameter takes, where they are few: as the code has them."""
    registries = {"method": METHODS, "methods": METHODS}
    registries |= {"quantizer": QUANTIZERS, "corpus": CORPORA, "eval_corpora": CORPORA}
    if parameter == "preset":
        return preset_names()
    if parameter in registries:
        return registries[parameter].names()
    field = (RunConfig.model_fields | SuiteConfig.model_fields).get(parameter)
    return [] if field is None else words_of(field.annotation)


def words_of(kind: Any) -> list[str]:
    """Return the values of a type's literals, and of its truth values, wherever they are in it."""
    if kind is bool:
        return ["true", "false"]
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    return [word for part in get_args(kind) for word in words_of(part)]


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_an_unknown_parameter_ends_with_2_and_the_nearest_name(name: str) -> None:
    right = list(ENTRY_POINTS[name]["parameters"])[-1]
    for arguments in ([f"--{right}x=1"], [f"--{right}x", "1"]):
        done = call(name, *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: unknown parameter '{right}x'")
        assert f"Did you mean '{right}'?" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_word_that_is_no_parameter_ends_with_2() -> None:
    done = call("single", "random")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unexpected argument 'random'")


def test_a_parameter_without_a_value_ends_with_2() -> None:
    done = call("single", "--seed")
    assert done.returncode == 2
    assert "--seed" in done.stderr
    assert "Traceback" not in done.stderr


def test_continuous_integration_looks_for_the_newest_python_that_is_supported() -> None:
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    (newest,) = re.findall(r"^NEWEST=3\.(\d+)$", (ROOT / ".ci" / "run").read_text(), flags=re.M)
    assert f"3.{newest}" in SpecifierSet(python)
    assert f"3.{int(newest) + 1}" not in SpecifierSet(python)
