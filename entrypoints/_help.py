"""What `--help` says of a parameter: what it is, the values it takes, and its default."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import yaml

from colazero.settings import RunConfig
from colazero.suite_settings import PRESET_DIR, SuiteConfig, preset_names

OF_MODELS = {"model": "models", "seed": "seeds"}
"""What a single run takes the first of from a preset's list."""
EMPTY = {"looks": "auto"}
"""What an empty list is called, where that is not `none`."""


def help_text(name: str, parameters: Collection[str]) -> str:
    """Return the help of `preset` or of a field; `parameters`: what else the entry point takes."""
    if name == "preset":
        known = ", ".join(preset_names())
        return f"{known}, or a YAML file. Default: demo, or full when a model is named"
    kind = SuiteConfig if "models" in parameters else RunConfig
    about, values = str(kind.model_fields[name].description), _values(name, kind)
    unsaid = [v for v in values if not re.search(rf"(?<![\w-]){re.escape(v)}(?![\w-])", about)]
    if unsaid:
        about += f". Values: {', '.join(values)}"
    return f"{about}. Default: {_default(name, kind)}"


def _values(name: str, kind: type[RunConfig] | type[SuiteConfig]) -> list[str]:
    """Return the values that a parameter takes, as words."""
    from colazero.corpora import CORPORA, WITH_ARGUMENT
    from colazero.quantizers import QUANTIZERS, UNQUANTIZED
    from colazero.selection import METHODS
    from colazero.suite.execution import EXECUTORS

    if name in ("method", "methods"):
        return [*METHODS.names(), "MODULE:FUNCTION"]
    if name in ("corpus", "eval_corpora"):
        own = [f"{kind}:{argument}" for kind, argument in WITH_ARGUMENT.items()]
        return [*(n for n in CORPORA.names() if n not in WITH_ARGUMENT), *own]
    if name == "quantizer":
        return [*QUANTIZERS.names(), UNQUANTIZED]
    if name == "executor":
        return EXECUTORS.names()
    return _of_schema(kind.model_json_schema()["properties"][name])


def _of_schema(schema: dict[str, Any]) -> list[str]:
    """Put a field's JSON schema into words; nothing for any text."""
    if "anyOf" in schema:
        return [word for option in schema["anyOf"] for word in _of_schema(option)]
    if "const" in schema or "enum" in schema:
        return [str(value) for value in schema.get("enum", [schema.get("const")])]
    kind = schema.get("type")
    if kind == "array":
        return _of_schema(schema["items"])
    if kind == "boolean":
        return ["true", "false"]
    if kind in ("integer", "number"):
        return [" ".join(["whole number" if kind == "integer" else "number", *_limits(schema)])]
    return []


def _limits(schema: dict[str, Any]) -> list[str]:
    words = {"minimum": "of at least", "exclusiveMinimum": "above"}
    most = {"maximum": "and at most", "exclusiveMaximum": "and below"}
    return [f"{word} {schema[key]:,}" for key, word in (words | most).items() if key in schema]


def _default(name: str, kind: type[RunConfig] | type[SuiteConfig]) -> str:
    """Return a parameter's default: what each preset says, and what holds where it says nothing."""
    key = name if kind is SuiteConfig else OF_MODELS.get(name, name)
    first = name in OF_MODELS and kind is RunConfig
    by_value: dict[str, list[str]] = {}
    for preset in preset_names():
        values = yaml.safe_load((PRESET_DIR / f"{preset}.yaml").read_text(encoding="utf-8"))
        if key in values and not (key == "methods" and kind is RunConfig):
            text = _text(values[key])
            by_value.setdefault(_first(name, text) if first else text, []).append(preset)
    own = _text(kind.model_fields[name].default, EMPTY.get(name, "none"))
    said = "; ".join(f"{value} in {', '.join(where)}" for value, where in by_value.items())
    return f"{own} ({said})" if said and set(by_value) != {own} else own


def _first(name: str, text: str) -> str:
    return re.split("[,-]" if name == "seed" else ",", text)[0]


def _text(value: object, empty: str = "none") -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or empty
    return str(value).lower() if isinstance(value, bool) else str(value)
