"""The parameters of a suite, and the grid of cells that they make."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from colazero.config.fields import Common, RunConfig, Settings, refuse_groups
from colazero.config.values import (
    Bits,
    Controls,
    Count,
    GroupSize,
    Length,
    Looks,
    Name,
    Names,
    Seeds,
    Several,
)

USUAL_PRIMARY, USUAL_BASELINE = "cola_zero", "gptq_default"
SWEPT = ("quant_bits", "group_size", "n_calibration_samples", "seq_len", "corpus")
"""The settings of which a suite takes several values."""


def _swept(name: str) -> Any:
    """Return the field of a suite for a setting of which it takes several values."""
    field = Settings.model_fields[name]
    text = f"{field.description}; a suite takes several, comma separated"
    return Field((field.default,), description=text)


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
        refuse_groups(self, self.group_size)
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
