"""Every parameter: its name, default, unit and check, once. Presets and command lines only fill it.

A parameter written `auto` takes the preset's value, and what the preset leaves open takes the
default that stands here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from colazero.errors import UserError, unknown

PRESET_DIR = Path(__file__).parent / "presets"
USUAL_PRIMARY, USUAL_BASELINE = "cola_zero", "gptq_default"


def _items(value: object) -> object:
    """Split `a,b` into its items; what is already a list stays as it is.

    A comma inside the path of a file or folder that is there is part of the path.
    """
    if not isinstance(value, str):
        return value
    parts = value.split(",") if value.strip() else []
    items = []
    while parts:
        joined = (",".join(parts[:count]).strip() for count in range(len(parts), 1, -1))
        item = next((path for path in joined if _is_path(path)), parts[0].strip())
        if item.startswith("mix:"):
            item = ",".join(parts[: _mixed(parts)]).strip()
        del parts[: item.count(",") + 1]
        items.append(item)
    return items


def _mixed(parts: Sequence[str]) -> int:
    """Return how many parts a mix of corpora takes: until its shares add up to 1, or all there are.

    A part without a share is the beginning of a path with a comma in it.
    """
    total, last = 0.0, 0
    for count, part in enumerate(parts, start=1):
        if share := re.search(r"=([0-9]*\.?[0-9]+)$", part.strip()):
            total, last = total + float(share[1]), count
        if total > 1 - 1e-6:
            break
    return last or 1


def _is_path(item: str) -> bool:
    try:
        return Path(item.removeprefix("file:")).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, or nobody's home
        return False


def _seeds(value: object) -> object:
    """Expand `42,43` and `42-46` into integers."""
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    items = _items(value)
    if not isinstance(items, list):
        return items
    seeds: list[object] = []
    for item in items:
        if isinstance(item, str) and (span := re.fullmatch(r"(\d+)-(\d+)", item)):
            first, last = int(span[1]), int(span[2])
            if last < first:
                raise ValueError(f"the range {item!r} runs backwards")
            if last - first >= 10_000:
                raise ValueError(f"the range {item!r} holds more than 10,000 seeds")
            seeds.extend(range(first, last + 1))
        elif isinstance(item, str) and not re.fullmatch(r"\d+", item):
            raise ValueError(f"{item!r} is no non-negative integer and no range like 42-46")
        else:
            seeds.append(item)
    return seeds


def _some(value: object) -> object:
    """Split as `_items`, and leave `none` out."""
    items = _items(value)
    return [item for item in items if item != "none"] if isinstance(items, list | tuple) else items


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values or any(v == "" for v in values):
        raise ValueError("the list is empty or has an empty item")
    twice = sorted({str(v) for v in values if values.count(v) > 1})
    if twice:
        raise ValueError(f"named twice: {', '.join(twice)}")
    return values


def _digits(value: object) -> object:
    """Let a command line's `4` match a literal 4."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _values(value: object) -> object:
    """Split as `_items`; a single value is a list of one."""
    return _items(value) if isinstance(value, str | list | tuple) else [value]


Item = TypeVar("Item")
Several = Annotated[tuple[Item, ...], BeforeValidator(_values), AfterValidator(_distinct)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(_items), AfterValidator(_distinct)]
Seeds = Annotated[tuple[Seed, ...], BeforeValidator(_seeds), AfterValidator(_distinct)]
Controls = Annotated[tuple[Literal["rtn"], ...], BeforeValidator(_some)]
Looks = Annotated[tuple[Annotated[int, Field(ge=2)], ...], BeforeValidator(_some)]
Bits = Annotated[Literal[2, 3, 4, 8], BeforeValidator(_digits)]
WholeRow = Annotated[Literal[-1], BeforeValidator(lambda v: -1 if v == "-1" else v)]
GroupSize = Literal["auto"] | WholeRow | Annotated[int, Field(ge=16)]
Count = Annotated[int, Field(ge=1)]
Length = Annotated[int, Field(ge=16)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda|cuda:\d+)$")]


class Common(BaseModel):
    """What a single run and a suite have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the training documents that each seed draws before its method "
        "selects; below 1 every method, a deterministic one too, has a spread over corpora",
    )
    bos: Literal["auto", "always", "first", "never"] = Field(
        "auto",
        description="BOS token in front of every window (always), of the evaluation text as a "
        "whole where the tokenizer writes one (first, as the GPTQ papers do) or nowhere (never); "
        "auto: always for Gemma, else first",
    )
    exact_documents: int = Field(
        20_000,
        ge=100,
        description="documents a method clusters exactly; of more, a sample of this size decides "
        "terms and components, and k-means goes in mini-batches",
    )
    document_tokens: int = Field(
        128,
        ge=2,
        description="first tokens of a document that cola and cola_zero_perplexity run a model on",
    )
    proxy_model: Name = Field(
        "smollm2-135m", description="small model whose perplexities cola_zero_perplexity uses"
    )
    desc_act: bool = Field(False, description="quantize columns in order of activation size")
    sym: bool = Field(True, description="symmetric grid")
    damp_percent: float = Field(
        0.05, gt=0, lt=1, description="share of the mean Hessian diagonal added to it"
    )
    act_group_aware: Literal["auto"] | bool = Field(
        "auto", description="order groups by activation (GAR); auto: true unless desc_act"
    )
    eval_corpora: Names = Field(("sotu",), description="perplexity is measured on their test split")
    eval_windows: Literal["all"] | Annotated[int, Field(ge=1)] = Field(
        "all", description="windows evaluated a corpus, evenly spaced over the test split"
    )
    eval_seq_len: Literal["auto"] | Annotated[int, Field(ge=16)] = Field(
        "auto", description="tokens an evaluation window; auto: as many as a calibration window"
    )
    do_downstream: bool = Field(False, description="run the downstream tasks too")
    downstream_tasks: Names = Field(
        ("arc_easy", "hellaswag", "piqa", "winogrande"), description="lm-eval task names"
    )
    quantizer: Name = Field(
        "onepass",
        description="onepass (a block at a time), gptqmodel, auto-gptq, rtn (rounds, no "
        "calibration) or none",
    )
    save_model: Literal["artifact", "local", "none"] = Field(
        "artifact", description="where the quantized model stays"
    )
    device: Device = Field(
        "auto", description="auto (CUDA when there, else CPU), cpu, cuda, cuda:N"
    )


class Settings(Common):
    """What decides a cell beside its model, method and seed."""

    corpus: Name = Field("sotu", description="calibration corpus: a name or file:PATH")
    n_calibration_samples: Count = Field(128, description="calibration windows")
    seq_len: Length = Field(2048, description="tokens a calibration window")
    quant_bits: Bits = Field(4, description="bits a weight")
    group_size: GroupSize = Field(
        "auto",
        description="inputs that share a scale; -1: all of a row; auto: 128, or the largest that "
        "divides",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        _refuse_groups(self, [self.group_size])
        return self

    @property
    def evaluated_len(self) -> int:
        """Tokens of an evaluation window."""
        return self.seq_len if self.eval_seq_len == "auto" else self.eval_seq_len


def _refuse_groups(config: Common, sizes: Collection[int | str]) -> None:
    if -1 in sizes and config.act_group_aware is True:
        raise ValueError("act_group_aware=true needs groups: group_size=-1 makes none")
    if config.desc_act and config.act_group_aware is True:
        raise ValueError("act_group_aware=true needs desc_act=false: set one of them to false")


SWEPT = ("quant_bits", "group_size", "n_calibration_samples", "seq_len", "corpus")
"""The settings of which a suite takes several values."""


def _swept(name: str) -> Any:
    """Return the field of a suite for a setting of which it takes several values."""
    field = Settings.model_fields[name]
    text = f"{field.description}; a suite takes several, comma separated"
    return Field((field.default,), description=text)


class RunConfig(Settings):
    """One cell: one model, one method, one seed."""

    model: Name = Field("smollm2-135m", description="name, Hub id[@revision], directory or .gguf")
    method: Name = Field("cola_zero", description="how the calibration windows are chosen")
    seed: Seed = Field(
        42, description="seeds the draw of documents, the selection and the order of its windows"
    )
    replicate: int = Field(
        1, ge=1, description="number of the order in which the windows reach the quantizer"
    )


class SuiteConfig(Common):
    """A grid of cells: models × settings × methods × seeds × replicates."""

    corpus: Several[Name] = _swept("corpus")
    n_calibration_samples: Several[Count] = _swept("n_calibration_samples")
    seq_len: Several[Length] = _swept("seq_len")
    quant_bits: Several[Bits] = _swept("quant_bits")
    group_size: Several[GroupSize] = _swept("group_size")

    models: Names = Field(("smollm2-135m",), description="models, comma separated")
    methods: Names = Field(("gptq_default", "random", "cola_zero"), description="methods")
    seeds: Seeds = Field((42, 43, 44, 45, 46), description="42,43 or 42-46")
    replicates: int = Field(
        1,
        ge=1,
        description="times that each calibration set is quantized, its windows in another order "
        "each time: what differs then is arithmetic alone",
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
    executor: Name = Field("local", description="where cells run: local or ray")
    workers: int = Field(
        1, ge=1, description="cells at once, each in a process of its own; Ray decides by itself"
    )
    ray_address: Name = Field(
        "local", description="HOST:PORT of a Ray cluster; local: start one on this machine"
    )
    cpus_per_cell: float = Field(
        1.0, gt=0, description="CPUs a cell takes of a Ray node, beside a GPU where there is one"
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
        (), description="rtn: each model rounded to nearest too, beside the grid; or none"
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
        _refuse_groups(self, self.group_size)
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
                raise ValueError(f"{given} needs until=settled: a fixed suite is looked at once")
            return self
        if len(self.methods) < 2 or len(self.seeds) < 3:
            raise ValueError(
                f"until=settled with {len(self.methods)} methods and {len(self.seeds)} seeds: "
                "comparisons need at least 2 methods, and looks at least 3 seeds"
            )
        if list(self.looks) != sorted(set(self.looks)):
            raise ValueError(f"{given}: the numbers of seeds must rise")
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
        """The baseline: as named, or gptq_default, or the first method that is not the primary."""
        if self.baseline != "auto":
            return self.baseline
        if USUAL_BASELINE in self.methods:
            return USUAL_BASELINE
        first = USUAL_PRIMARY if self.primary == "auto" else self.primary
        return next((name for name in self.methods if name != first), self.methods[0])

    @property
    def schedule(self) -> tuple[int, ...]:
        """Numbers of seeds after which the suite is looked at; the last is all of them."""
        maximum = len(self.seeds)
        if self.until == "seeds":
            return (maximum,)
        step = max(3, -(-maximum // 6))
        return tuple(dict.fromkeys((*(self.looks or range(step, maximum, step)), maximum)))

    @property
    def sweep(self) -> dict[str, tuple[Any, ...]]:
        """The settings of which there are several values: name → values."""
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
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
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


def canonical_key(config: Settings, **context: str) -> str:
    """Return 16 hex digits that two runs share exactly when they must give the same result.

    `context` is what decides the result beside the parameters: revisions, digests, versions.
    The device's number does not count: what computes stands in `context` (`devices.facts`).
    """
    values = config.model_dump(mode="json")
    values["device"] = str(values["device"]).split(":")[0]
    text = json.dumps({"config": values, "context": context}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
