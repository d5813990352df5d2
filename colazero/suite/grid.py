"""The cells of a suite: what they are called, what is run beside them, and in which order."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from colazero import cell, models, preconditions
from colazero.quantizers import UNQUANTIZED
from colazero.settings import SETTINGS, RunConfig
from colazero.store import client
from colazero.suite import memory
from colazero.suite.execution import Job
from colazero.suite_settings import SuiteConfig
from colazero.types import Model

ROUNDING = {name for name, one in SETTINGS.items() if one.rounds}
"""The settings that decide what rounding a model without calibration gives."""


def title(config: SuiteConfig, preset: str) -> str:
    """Name a suite by its preset, its models and the time: `11-25 14:30·demo·smollm2-135m`."""
    first, *others = [models.label(name) for name in config.models]
    more = f" and {len(others)} more" if others else ""
    return client.run_name(time.strftime("%m-%d %H:%M"), Path(preset).stem, first + more)


def name_of(one: RunConfig, sweep: Collection[str] = ()) -> str:
    """Return a cell's name, also where its model is not at hand."""
    return cell.name_of(one, Model(one.model, Path(), revision=""), sweep)


def beside(config: SuiteConfig, one: RunConfig) -> dict[str, str]:
    """Return what is run beside the grid for a cell's model and setting: name → quantizer.

    The unquantized model once a way of evaluating it, a control once a way of rounding it.
    """
    label = models.label(one.model)
    follows = {"seq_len"} if config.eval_seq_len == "auto" else set()
    plain = cell.setting_of(one, [name for name in config.sweep if name in follows])
    rounded = cell.setting_of(one, [name for name in config.sweep if name in follows | ROUNDING])
    controls = {client.run_name(name, *rounded, label): name for name in config.controls}
    return {client.run_name("unquantized", *plain, label): UNQUANTIZED} | controls


def usable(config: SuiteConfig, model_name: str) -> list[Job]:
    """Return a model's jobs; UserError if it cannot be had, or used as `config` says."""
    model = models.fetch(model_name)
    memory.Weights.of(model)
    mine = [one for one in config.cells() if one.model == model_name]
    resolved = [preconditions.resolve(one, model, config.device) for one in mine]
    jobs: dict[str, Job] = {}
    for one in resolved[:: len(resolved) // len(config.settings())]:  # the first of each setting
        preconditions.check_data(one, model)
        for name, quantizer in beside(config, one).items():
            jobs.setdefault(name, _beside(name, quantizer, one, model))
    cells = [Job(cell.name_of(one, model, config.sweep), "cell", one, model) for one in resolved]
    return [*jobs.values(), *cells]


def _beside(name: str, quantizer: str, config: RunConfig, model: Model) -> Job:
    """Return the unquantized model's job, or a control's, which needs no calibration.

    A control is named after its quantizer in the method's place.
    """
    if quantizer == UNQUANTIZED:
        return Job(name, "baseline", config, model)
    config = config.model_copy(update={"method": quantizer, "quantizer": quantizer})
    return Job(name, "control", config, model)


def drawn_order(jobs: Sequence[Job], source: np.random.Generator) -> list[Job]:
    """Return a model's jobs with the methods in an order drawn anew for each seed and replicate.

    A machine that slows down, or warms up, does so for all methods alike then (randomized complete
    blocks), and whenever the suite is stopped, each has as many seeds as the others.
    """
    blocks: dict[tuple[int, int], list[Job]] = {}
    for job in jobs:
        if job.kind == "cell":
            blocks.setdefault((job.config.replicate, job.config.seed), []).append(job)
    first = [job for job in jobs if job.kind != "cell"]
    return first + [
        block[i] for _, block in sorted(blocks.items()) for i in source.permutation(len(block))
    ]
