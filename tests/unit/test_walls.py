"""The walls of the house: which room may import from which, and where MLflow may be imported."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("entrypoints", "colazero", "analysis")

GROUND = {"settings", "suite_settings", "values", "types", "registry", "cache", "errors"}
GROUND |= {"environment", "figures", "devices", "colazero"}
"""What every room of `colazero` may use: small files in its root."""

ROOMS: dict[str, set[str]] = {
    # `--help` names what there is of every kind.
    "entrypoints": {"suite", "cell", "pipeline", "store", "calibration"}
    | {"quantizers", "models", "selection", "corpora", "evaluation"}
    | {"analysis.reading", "analysis.stats", "analysis.summary", "analysis.report"},
    "suite": {"cell", "reuse", "store", "pipeline", "selection", "quantizers"}
    | {"corpora", "models", "blocks"},
    "cell": {"pipeline", "reuse", "store", "calibration", "quantizers", "corpora", "blocks"},
    "store": set(),
    "reuse": {"selection", "quantizers", "evaluation", "corpora", "models"},
    "pipeline": {"calibration", "selection", "quantizers", "evaluation"}
    | {"corpora", "models", "blocks"},
    # A set's picture shows the features that its method clusters.
    "calibration": {"selection", "corpora"},
    "quantizers": {"blocks", "gptq", "models"},
    "gptq": set(),
    "blocks": {"gptq", "models"},
    # Some methods look at what a model computes.
    "selection": {"evaluation", "corpora", "models"},
    "evaluation": {"blocks", "gptq", "corpora", "models"},
    "corpora": {"models"},
    "models": set(),
    "settings": set(),
    "suite_settings": set(),
    "values": set(),
    "types": set(),
    "registry": set(),
    "cache": set(),
    "figures": set(),
    "errors": set(),
    "environment": set(),
    "devices": set(),
    "colazero": set(),
    "analysis.reading": {"errors", "settings"},
    "analysis.stats": set(),
    "analysis.custom": {"analysis.stats"},
    "analysis.summary": {"analysis.reading", "analysis.stats"},
    "analysis.report": {
        *("analysis.reading", "analysis.stats", "analysis.summary", "analysis.custom"),
        *("figures", "settings"),
    },
}
"""Room → the rooms below it that it may use, besides the ground."""

FLOOR_0 = {"errors", "settings", "figures"}
"""What `analysis` may use of `colazero`; `colazero` uses nothing of `analysis`."""

MLFLOW = ("suite", "cell", "store", "analysis.reading", "entrypoints")
RUNS_PROJECTS = "colazero.quantizers.auto_gptq"
"""The one module elsewhere that needs MLflow: to run another project, not to track this one."""


def modules() -> dict[str, ast.Module]:
    """Return every module by its dotted name."""
    found = {}
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = ast.parse(file.read_text())
    return found


MODULES = modules()


def room(module: str) -> str:
    """Return the room of a module: a folder, or a file in the root of `colazero`."""
    top, *rest = module.split(".")
    if top == "entrypoints":
        return top
    if top == "analysis":
        return ".".join([top, *rest[:1]])
    return rest[0] if rest else top


def imported(tree: ast.Module) -> set[str]:
    """Return the dotted names that a module imports, inside its functions too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_of(name: str) -> str | None:
    """Return the module of this project that `name` is or lies in; None for other packages."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


COLAZERO = {m for m in MODULES if not m.startswith("analysis")}
ARROWS = sorted(
    {
        (module, target)
        for module, tree in MODULES.items()
        for name in imported(tree)
        if (target := module_of(name)) and room(target) != room(module)
    }
)


def test_no_arrow_that_the_plan_of_the_house_does_not_have() -> None:
    forbidden = [
        f"{module} → {target}"
        for module, target in ARROWS
        if room(target) not in ROOMS[room(module)] | (GROUND if module in COLAZERO else set())
    ]
    assert not forbidden


def test_colazero_and_the_analysis_share_the_lowest_floor_alone() -> None:
    for package in ("colazero", "analysis"):
        allowed = FLOOR_0 if package == "analysis" else set()
        other = {
            f"{module} → {target}"
            for module, target in ARROWS
            if module.startswith(package)
            and target.split(".")[0] in {"colazero", "analysis"} - {package}
            and room(target) not in allowed
        }
        assert not other


def test_the_plan_has_every_room_and_no_circle() -> None:
    assert {room(module) for module in MODULES} - {"analysis"} == set(ROOMS)
    TopologicalSorter(ROOMS).prepare()  # CycleError names the circle


def test_no_circle_of_modules() -> None:
    arrows = {
        module: {
            target
            for name in imported(tree)
            # A file of a package may use the names that its face defines, such as a registry.
            if (target := module_of(name)) and not module.startswith(f"{target}.")
        }
        for module, tree in MODULES.items()
    }
    TopologicalSorter({m: targets - {m} for m, targets in arrows.items()}).prepare()


def test_mlflow_is_imported_only_where_runs_are() -> None:
    importing = {
        module
        for module, tree in MODULES.items()
        if any(name.split(".")[0] == "mlflow" for name in imported(tree))
    }
    assert {m for m in importing if room(m) not in MLFLOW} == {RUNS_PROJECTS}


def test_the_analysis_reads_runs_without_torch() -> None:
    for module, tree in MODULES.items():
        if module.startswith("analysis"):
            assert not {name.split(".")[0] for name in imported(tree)} & {"torch", "transformers"}


def test_the_table_of_rooms_names_every_room() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Rooms")[2]
    rooms = {room.removeprefix("analysis.") for room in ROOMS} - {"colazero"}
    rooms |= {file.parent.name for file in ROOT.glob("*/*.py")} - {"tests", "colazero"}
    written = {room: (f"{room}/`", f"{room}.py`", f"`{room}`") for room in rooms}
    assert not [room for room, forms in written.items() if not any(f in table for f in forms)]
