"""Presets and command lines → a configuration, or one sentence that says what is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from colazero.config.fields import Common, Settings
from colazero.config.grid import SWEPT, SuiteConfig
from colazero.errors import UserError, unknown

PRESET_DIR = Path(__file__).resolve().parents[1] / "presets"
Config = TypeVar("Config", bound=Common)


def preset_names() -> list[str]:
    """Return the names of the presets that come with the project."""
    return sorted(path.stem for path in PRESET_DIR.glob("*.yaml"))


def _read_preset(name: str) -> dict[str, Any]:
    """Read a preset by name or a YAML file of the user's own; UserError if it is neither."""
    own = name.endswith((".yaml", ".yml"))
    if not own and name not in preset_names():
        raise unknown("preset", name, [*preset_names(), "auto"])
    path = Path(name) if own else PRESET_DIR / f"{name}.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"preset file {name!r} does not exist (looked in {Path.cwd()}).") from None
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"preset file {name!r} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"preset file {name!r} must hold `name: value` lines.")
    for key in values:
        if key not in SuiteConfig.model_fields:
            raise unknown(f"parameter in preset file {name!r}:", str(key), SuiteConfig.model_fields)
    return values


def parse(
    kind: type[Config], given: Mapping[str, str], allowed: frozenset[str] | None = None
) -> Config:
    """Build the configuration from command line values.

    `given` maps parameter names to strings, `preset` among them; `auto` counts as not given.
    Order of precedence: what is given, the preset, the defaults of the fields. UserError names
    the first parameter that is wrong, its value and what is allowed. `allowed` narrows the
    parameters an entry point takes.
    """
    names = {"preset", *(allowed if allowed is not None else kind.model_fields)}
    for name in given:
        if name not in names:
            raise unknown("parameter", name, names)
    chosen = {name: value for name, value in given.items() if value != "auto" and name != "preset"}
    values = _read_preset(preset_of(given))
    if kind is not SuiteConfig:
        # A single run takes the first of what a preset lists; its method it names itself.
        suite = _validated(SuiteConfig, values)
        values = {name: v for name, v in values.items() if name in Settings.model_fields}
        values |= {"model": suite.models[0], "seed": suite.seeds[0]}
        values |= {name: getattr(suite, name)[0] for name in SWEPT}
    return _validated(kind, values | chosen)


def preset_of(given: Mapping[str, str]) -> str:
    """Return the preset that command line values name: `full` with a model, else `demo`."""
    chosen = {name for name, value in given.items() if value != "auto"}
    if "preset" in chosen:
        return given["preset"]
    return "full" if {"model", "models"} & chosen else "demo"


def _validated(kind: type[Config], values: Mapping[str, Any]) -> Config:
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = next((str(part) for part in first["loc"] if part in kind.model_fields), "")
        what = first["msg"].removeprefix("Value error, ")
        if not name:
            raise UserError(what) from None
        field = kind.model_fields[name]
        raise UserError(
            f"{name}={values.get(name)!r}: {_allowed(kind, first['loc'], what)} "
            f"({field.description})."
        ) from None


def _allowed(kind: type[Common], place: Sequence[int | str], what: str) -> str:
    """Say what a field, or an item of its list, allows; not in pydantic's words for its insides."""
    schema = kind.model_json_schema()["properties"][place[0]]
    schema = schema["items"] if "items" in schema and len(place) > 1 else schema
    if "anyOf" in schema:
        options = [str(o.get("const", o.get("type"))) for o in schema["anyOf"]]
        least = next((o["minimum"] for o in schema["anyOf"] if "minimum" in o), None)
        above = next(
            (o["exclusiveMinimum"] for o in schema["anyOf"] if "exclusiveMinimum" in o), ""
        )
        limit = f" of at least {least}" if least else f" above {above}" if above != "" else ""
        return "must be " + " or ".join(options) + limit
    if "enum" in schema:
        return "must be one of " + ", ".join(map(str, schema["enum"]))
    if "pattern" in schema:
        return f"must be like {schema['pattern'].strip('^$()')}"
    return what[0].lower() + what[1:]
