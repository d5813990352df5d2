"""What a suite would do, what it needs and whether there is enough of it, before any work."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from colazero import cell, corpora, devices
from colazero.cache import cache_dir
from colazero.corpora.tokens import token_pool
from colazero.errors import UserError
from colazero.quantizers import UNQUANTIZED
from colazero.store import client, fetch, record
from colazero.suite import memory
from colazero.suite.execution import Job, local
from colazero.suite.memory import GB, Weights
from colazero.suite.progress import counted
from colazero.suite_settings import SuiteConfig


@dataclass(frozen=True)
class Need:
    """Something a suite needs: how much, against what there is, in `unit`."""

    what: str
    needed: float
    available: float
    unit: str

    def sentence(self) -> str:
        """Return it as in `disk at /tmp: 1.2 GB needed, 80.0 GB available`."""
        digits = ",.1f" if self.unit == "GB" else ",.0f"
        needed, available = f"{self.needed:{digits}}", f"{self.available:{digits}}"
        return f"{self.what}: {needed} {self.unit} needed, {available} {self.unit} available"


@dataclass(frozen=True)
class Plan:
    """The cells by what is done with them, what they need, and how long it may take.

    `seconds` is None where no finished run of these settings tells.
    """

    run: list[str]
    reuse: list[str]
    needs: list[Need]
    seconds: float | None
    why: dict[str, list[str]] = field(default_factory=dict)
    """Why cells run although others of their parameters are finished: reason → names."""
    expected: dict[str, float] = field(default_factory=dict)
    """With until=settled, the number of cells expected: under what → how many of `most`."""
    most: int = 0
    cells: dict[str, memory.Room] = field(default_factory=dict)
    """Model → bytes that a cell of it needs."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Models that have no room on this machine → why."""

    def text(self) -> str:
        """Return the plan in lines."""
        lines = []
        for title, names in (("run", self.run), ("reuse", self.reuse)):
            lines.append(f"{counted(len(names), 'cell')} to {title}" + (":" if names else ""))
            lines += [f"  {name}" for name in names]
        for what, cells in self.expected.items():
            lines.append(f"about {cells:.0f} of these cells, {self.most} at most, {what}")
        lines += said(self.why)
        for name, room in self.cells.items():
            gpu = f"{room.gpu / GB:,.1f} GB on the GPU and " if room.gpu else ""
            lines.append(f"a cell of {name} needs {gpu}{room.main / GB:,.1f} GB of main memory")
        lines += [f"model {name} is left out: {why}" for name, why in self.left_out.items()]
        lines += [need.sentence() for need in self.needs]
        if self.seconds is None:
            lines.append("time: no finished run of these settings tells")
        else:
            lines.append(f"time: about {counted(max(1, round(self.seconds / 60)), 'minute')}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        return asdict(self)


Expect = Callable[[int, Sequence[int]], Mapping[str, float]]
"""(number of methods, looks) → under what → the share of the cells that is done till all is
settled."""


def make(config: SuiteConfig, jobs: Sequence[Job], workers: int, expect: Expect) -> Plan:
    """Plan a suite inside an open run: `config` as it was given, `workers` as many as there are.

    It takes seconds: nothing is selected.
    """
    expected, most = {}, sum(job.kind == "cell" for job in jobs)
    if config.until == "settled":
        shares = expect(len(config.methods), config.schedule)
        expected = {what: share * most for what, share in shares.items()}
    run, reuse = divide(jobs)
    left_out = memory.too_large(config, run)
    run = [job for job in run if job.model.name not in left_out]
    needed, seconds = needs(config, jobs, run), _seconds(run, workers)
    rooms = memory.rooms(config, run)
    return Plan(
        run=_names(run),
        reuse=_names(reuse),
        needs=needed,
        seconds=seconds,
        why=why_new(run),
        expected=expected,
        most=most,
        cells=rooms,
        left_out=left_out,
    )


def refuse_all_left_out(left_out: Mapping[str, str], left: Collection[object]) -> None:
    """Raise UserError if models have no room here and nothing is left to run."""
    if left_out and not left:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise UserError(f"no model of the suite has room here. {reasons}. Take smaller models.")


def why_new(run: Sequence[Job]) -> dict[str, list[str]]:
    """Return why cells of `run` are not reused, where others of their parameters are finished."""
    found: dict[str, list[str]] = {}
    for job in run:
        reason = cell.why_new(job.config, job.model)
        if reason:
            found.setdefault(reason.partition(", but ")[2], []).append(job.name)
    return found


def said(why: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the reasons in lines, each with the number of cells that it keeps from reuse."""
    return [
        f"{counted(len(names), 'cell')} not reused, although finished with the same parameters: "
        f"{reason}"
        for reason, names in why.items()
    ]


def _names(jobs: Sequence[Job]) -> list[str]:
    return [job.name for job in jobs if job.kind == "cell"]


def divide(jobs: Sequence[Job]) -> tuple[list[Job], list[Job]]:
    """Divide all but baselines into those to run and those that a finished run has done."""
    cells = [job for job in jobs if job.kind != "baseline"]
    reuse = [job for job in cells if _finished(job)]
    return [job for job in cells if job not in reuse], reuse


def _finished(job: Job) -> bool:
    key = cell.key_of(job.config, job.model)
    return fetch.find_finished("colazero.key", key) is not None


def _seconds(run: Sequence[Job], workers: int) -> float | None:
    """Estimate the suite's duration."""
    known = times(run).values()
    return None if None in known else sum(t for t in known if t is not None) / workers


def times(run: Sequence[Job]) -> dict[str, float | None]:
    """Estimate by name what cells take: the mean of finished ones, of the same method if any are.

    None where no finished run of these settings tells.
    """
    found: dict[str, float | None] = {}
    experiment = client.experiment_of(record.active_run_id())
    for job in run:
        same = ("model", "n_calibration_samples", "seq_len", "quant_bits", "do_downstream")
        params = {name: record.as_text(getattr(job.config, name)) for name in same}
        finished = fetch.finished_times(experiment, params)
        known = finished.get(job.config.method) or [t for own in finished.values() for t in own]
        found[job.name] = sum(known) / len(known) if known else None
    return found


def needs(config: SuiteConfig, jobs: Sequence[Job], run: Sequence[Job]) -> list[Need]:
    """Return what the suite needs of tokens, memory and disk against what there is.

    `config` as it was given; `run`: those of `jobs` that are to run. Memory and disk of other
    machines are not known here, and so not counted.
    """
    found = []
    tokens = max(config.n_calibration_samples) * max(config.seq_len)
    for model in dict.fromkeys(job.model for job in jobs):
        for corpus, chat in product(config.corpus, config.chat):
            pool = token_pool(model, corpus, chat=chat)
            available = int(config.corpus_share * len(pool.tokens))
            name = f"calibration tokens of {corpora.load(corpus).name}, {model.label}"
            found.append(Need(name, tokens, available, "tokens"))
    weights = [Weights.of(job.model) for job in run]
    sizes = [
        one.quantized(job.config.quant_bits)
        for one, job in zip(weights, run, strict=True)
        if job.config.quantizer != UNQUANTIZED
    ]
    here = min(config.workers, len(run)) if config.executor == "local" else 0
    if here:
        found += _memory(config, run, here)
    return [*found, *_disk(config, sizes, here)]


def _memory(config: SuiteConfig, run: Sequence[Job], workers: int) -> list[Need]:
    """Hold the least that all workers need at once, of GPU and main memory, against what is free.

    `config` as it was given: its device decides whether GPUs are divided.
    """
    rooms = memory.rooms(config, run).values()
    main = workers * max(room.main for room in rooms)
    found = [Need("memory", main / GB, devices.main_memory() / GB, "GB")]
    card = memory.free_on_card(config.device)
    if card:
        on_one = math.ceil(workers / len(local.gpus(config.device)))
        gpu = on_one * max(room.gpu for room in rooms)
        found.append(Need(f"CUDA memory of {card[0]}", gpu / GB, card[1] / GB, "GB"))
    return found


def _disk(config: SuiteConfig, sizes: Sequence[float], workers: int) -> list[Need]:
    """Sum up, by file system, what stays for ever and what is there while cells are at work."""
    each = 2 if config.save_model == "artifact" else 1  # one is sent while the next is computed
    at_work = min(len(sizes), each * workers) * max(sizes, default=0.0)
    places = [(cache_dir(), at_work)]
    if config.save_model == "artifact":
        if kept := record.artifact_folder():
            places.append((kept, sum(sizes)))
    elif config.save_model == "local" and config.executor == "local":
        places.append((Path.cwd(), sum(sizes)))
    by_system: dict[int, tuple[Path, float]] = {}
    for place, size in places:
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        path, sum_so_far = by_system.get(there.stat().st_dev, (there, 0.0))
        by_system[there.stat().st_dev] = (path, sum_so_far + size)
    return [
        Need(f"disk at {path}", size / GB, shutil.disk_usage(path).free / GB, "GB")
        for path, size in by_system.values()
    ]


def check(needed: Sequence[Need]) -> None:
    """Raise UserError for the first thing of which there is certainly not enough."""
    for need in needed:
        if need.needed > need.available:
            raise UserError(
                f"{need.sentence()}. Make room, or ask for less: fewer workers, a smaller model, "
                "save_model=none."
            )
