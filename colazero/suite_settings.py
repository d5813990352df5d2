"""The parameters of a suite, the grid of cells that they make, presets and command lines."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from colazero.errors import UserError, unknown
from colazero.settings import (
    SETTINGS,
    SWEPT,
    Common,
    RunConfig,
    Settings,
    refuse_contradictions,
)
from colazero.values import (
    Bits,
    Chat,
    Controls,
    Count,
    GroupSize,
    Length,
    Looks,
    Name,
    Names,
    Seeds,
    Several,
    Weight,
)

USUAL_PRIMARY, USUAL_BASELINE = "cola_zero", "gptq_default"


def _swept(name: str) -> Any:
    """Return the field of a suite for a setting of which it takes several values."""
    field = Settings.model_fields[name]
    text = f"{field.description}; a suite takes several, comma separated"
    return Field((field.default,), description=text)


class SuiteConfig(Common):
    """A grid of cells: models × settings × methods × seeds × replicates."""

    corpus: Several[Name] = _swept("corpus")
    chat: Several[Chat] = _swept("chat")
    n_calibration_samples: Several[Count] = _swept("n_calibration_samples")
    seq_len: Several[Length] = _swept("seq_len")
    quantizer: Several[Name] = _swept("quantizer")
    quant_bits: Several[Bits] = _swept("quant_bits")
    group_size: Several[GroupSize] = _swept("group_size")
    position_weight: Several[Weight] = _swept("position_weight")

    models: Names = Field(("smollm2-135m",), description="models, comma separated")
    methods: Names = Field(("gptq_default", "random", "cola_zero"), description="methods")
    seeds: Seeds = Field((42, 43, 44, 45, 46), description="seeds, as in 42,43 or 42-46")
    replicates: int = Field(
        1,
        ge=1,
        description="times that each calibration set is quantized, with its windows in another "
        "order: only rounding differs",
    )
    until: Literal["seeds", "settled"] = Field(
        "seeds",
        description="seeds: all of them; settled: a method whose comparisons are settled gets no "
        "more, and `seeds` is the declared maximum",
    )
    looks: Looks = Field(
        (),
        description="with until=settled: after how many seeds the analysis looks (5,10,20); auto: "
        "each sixth of the maximum, at least 3 seeds apart. The maximum is always a look",
    )
    budget_hours: Literal["none"] | Annotated[float, Field(gt=0)] = Field(
        "none", description="start no cell that would not end within so many hours; none: no limit"
    )
    executor: Literal["local", "ray"] = Field("local", description="where cells run")
    workers: int = Field(
        0,
        ge=0,
        description="cells at once, each in a process of its own; 0: one per GPU that `device` "
        "allows, or one. Ray decides by itself",
    )
    ray_address: Name = Field(
        "local", description="HOST:PORT of a Ray cluster; local: start one on this machine"
    )
    cpus_per_cell: float = Field(
        1.0, gt=0, description="CPUs that a cell takes of a Ray node, besides a GPU if there is one"
    )
    cell_time_limit: float = Field(
        720.0, gt=0, description="minutes after which a cell counts as hung and is ended"
    )
    system_metrics: bool = Field(False, description="log each cell's use of CPU, memory and GPU")
    plan: bool = Field(False, description="say what the suite would do and needs, and stop")
    downstream_seeds: Literal["first", "all"] = Field(
        "first", description="downstream tasks for the first seed of each method, or for all"
    )
    controls: Controls = Field(
        (), description="rtn: each model rounded to nearest too; none: no control"
    )
    primary: Name = Field(
        "auto",
        description="the method whose comparisons with each other one are the primary family; "
        "auto: cola_zero where it is there",
    )
    baseline: Name = Field(
        "auto",
        description="the method that stands second where it is compared; auto: gptq_default where "
        "it is there, else the first method named",
    )

    @model_validator(mode="after")
    def _sweeping(self) -> SuiteConfig:
        if len(self.group_size) > 1 and "auto" in self.group_size:
            raise ValueError(
                f"group_size={','.join(map(str, self.group_size))}: auto is one of the sizes, by "
                "the model; of several name each"
            )
        refuse_contradictions(self, self.group_size, self.quantizer, self.quant_bits)
        for name, quantizer in product(self.sweep, self.quantizer):
            if not SETTINGS[name].taken(quantizer):
                raise ValueError(
                    f"several values of {name}, which quantizer={quantizer} does not take: run a "
                    "suite for it alone. analyze with suites=A,B puts them together"
                )
        if self.until == "settled" and self.sweep:
            raise ValueError(
                f"until=settled with several values of {', '.join(self.sweep)}: looks are planned "
                "for one setting. Run a suite for each: analyze with suites=A,B puts them together"
            )
        return self

    @model_validator(mode="after")
    def _settling(self) -> SuiteConfig:
        given = f"looks={','.join(map(str, self.looks))}"
        if self.until == "seeds":
            if self.looks:
                raise ValueError(
                    f"{given} needs until=settled: a fixed suite is looked at once. looks=none "
                    "leaves them out, a preset's too"
                )
            return self
        if len(self.methods) < 2 or len(self.seeds) < 3:
            raise ValueError(
                f"until=settled with {len(self.methods)} methods and {len(self.seeds)} seeds: "
                "comparisons need at least 2 methods, and looks at least 3 seeds. Name more"
            )
        if list(self.looks) != sorted(set(self.looks)):
            raise ValueError(f"{given}: the numbers of seeds must rise, as in looks=5,10,20")
        if self.looks and self.looks[-1] > len(self.seeds):
            raise ValueError(
                f"{given}: beyond the declared maximum of {len(self.seeds)} seeds. Name more seeds "
                "or leave the last looks out"
            )
        return self

    @model_validator(mode="after")
    def _compared(self) -> SuiteConfig:
        for name in ("primary", "baseline"):
            method = getattr(self, name)
            if method not in ("auto", *self.methods):
                raise ValueError(
                    f"{name}={method!r}: must be one of the methods of the suite: "
                    f"{', '.join(self.methods)}, or auto"
                )
        return self

    @property
    def second(self) -> str:
        """Return the baseline: as named, gptq_default, or the first method but the primary."""
        if self.baseline != "auto":
            return self.baseline
        if USUAL_BASELINE in self.methods:
            return USUAL_BASELINE
        first = USUAL_PRIMARY if self.primary == "auto" else self.primary
        return next((name for name in self.methods if name != first), self.methods[0])

    @property
    def schedule(self) -> tuple[int, ...]:
        """Return the numbers of seeds after which the suite compares; the last is all of them."""
        maximum = len(self.seeds)
        if self.until == "seeds":
            return (maximum,)
        step = max(3, -(-maximum // 6))
        return tuple(dict.fromkeys((*(self.looks or range(step, maximum, step)), maximum)))

    @property
    def sweep(self) -> dict[str, tuple[Any, ...]]:
        """Return the settings that have several values: name → values."""
        return {name: getattr(self, name) for name in SWEPT if len(getattr(self, name)) > 1}

    def settings(self) -> list[Settings]:
        """Return each combination of the settings' values, the last of SWEPT changing fastest."""
        shared = {name: getattr(self, name) for name in Common.model_fields}
        lists = [getattr(self, name) for name in SWEPT]
        return [Settings(**shared, **dict(zip(SWEPT, v, strict=True))) for v in product(*lists)]

    def cells(self) -> list[RunConfig]:
        """Return the runs: model by model, setting by setting, method, seed, order by order."""
        downstream = self.seeds if self.downstream_seeds == "all" else self.seeds[:1]
        return [
            RunConfig(
                **one.model_dump()
                | {"do_downstream": self.do_downstream and seed in downstream and replicate == 1},
                model=model,
                method=method,
                seed=seed,
                replicate=replicate,
            )
            for model in self.models
            for one in self.settings()
            for method in self.methods
            for seed in self.seeds
            for replicate in range(1, self.replicates + 1)
        ]


PRESET_DIR = Path(__file__).resolve().parent / "presets"
Config = TypeVar("Config", bound=Common)


def preset_names() -> list[str]:
    """Return the names of the presets that come with the project."""
    return sorted(path.stem for path in PRESET_DIR.glob("*.yaml"))


def _read_preset(name: str) -> dict[str, Any]:
    """Read a preset by name or a YAML file of the user's own; UserError if it is neither."""
    own = name.lower().endswith((".yaml", ".yml"))
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
    schema = SuiteConfig.model_json_schema()["properties"]
    for key, value in values.items():
        if key not in schema:
            raise unknown(f"parameter in preset file {name!r}:", str(key), schema)
        flags = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, bool)]
        if flags and "true" not in allowed(schema[key]):
            what = SuiteConfig.model_fields[key].description
            raise UserError(f"{key}={value!r} in preset file {name!r}: is not {what}.")
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


def refuse_untaken(given: Mapping[str, str], quantizers: Collection[str]) -> None:
    """Raise UserError for a setting of a command line that none of the quantizers takes."""
    for name, value in given.items():
        one = SETTINGS.get(name)
        if one and value != "auto" and not any(map(one.taken, quantizers)):
            raise UserError(
                f"{name}={value!r}: quantizer={','.join(quantizers)} does not take it. Leave it "
                f"out, or use one that does: {', '.join(one.quantizers)}."
            )


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
            raise UserError(f"{what}.") from None
        field = kind.model_fields[name]
        if first["type"] != "value_error":  # pydantic's words, for the types inside a field
            words = allowed(kind.model_json_schema()["properties"][name]) or ["a word"]
            what = "must be " + " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
        raise UserError(f"{name}={values.get(name)!r}: {what} ({field.description}).") from None


def allowed(schema: Mapping[str, Any]) -> list[str]:
    """Return the values of a field's JSON schema in words; none if any text is allowed."""
    if "anyOf" in schema:
        return [word for option in schema["anyOf"] for word in allowed(option)]
    if "const" in schema or "enum" in schema:
        return [str(value) for value in schema.get("enum", [schema.get("const")])]
    kind = schema.get("type")
    if kind == "array":
        return allowed(schema["items"])
    if kind == "boolean":
        return ["true", "false"]
    if kind not in ("integer", "number"):
        return []
    limits = {"minimum": "of at least", "exclusiveMinimum": "above"}
    limits |= {"maximum": "and at most", "exclusiveMaximum": "and below"}
    said = [f"{word} {schema[key]:,}" for key, word in limits.items() if key in schema]
    return [" ".join(["a whole number" if kind == "integer" else "a number", *said])]
