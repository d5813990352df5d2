"""What a suite would do, what it needs and whether there is enough of it, before any work."""

from __future__ import annotations

import json
import math
import shutil
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from colazero import cell, corpora, pipeline, runs, store, tracking
from colazero.cache import cache_dir
from colazero.config import SuiteConfig, canonical_key
from colazero.errors import UserError
from colazero.execution import Job
from colazero.models import Model

GB = 1e9


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

    `share`: cells whose calibration set another cell of the suite has too. `seconds` is None
    where no finished run of these settings tells.
    """

    run: list[str]
    reuse: list[str]
    share: list[str]
    needs: list[Need]
    seconds: float | None

    def text(self) -> str:
        """Return the plan in lines."""
        lines = []
        for title, names in (("run", self.run), ("reuse", self.reuse), ("share", self.share)):
            lines.append(f"{len(names)} cells to {title}" + (":" if names else ""))
            lines += [f"  {name}" for name in names]
        lines += [need.sentence() for need in self.needs]
        if self.seconds is None:
            lines.append("time: no finished run of these settings tells")
        else:
            lines.append(f"time: about {max(1, round(self.seconds / 60)):,} minutes")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        return asdict(self)


def make(config: SuiteConfig, jobs: Sequence[Job]) -> Plan:
    """Plan a suite inside an open run. It takes seconds: two selections a method and model."""
    run: list[Job] = []
    reuse: list[str] = []
    share: list[str] = []
    for model in dict.fromkeys(job.model for job in jobs):
        mine = [job for job in jobs if job.model == model and job.kind == "cell"]
        context = cell.work_context(mine[0].config, model)
        done = {
            job.name: tracking.find_finished("colazero.key", canonical_key(job.config, **context))
            for job in mine
        }
        reuse += [name for name, found in done.items() if found is not None]
        for method in config.methods:
            of_method = [job for job in mine if job.config.method == method]
            new = [job for job in of_method if done[job.name] is None]
            first = len(new) == len(of_method)
            if len(of_method) > 1 and _same_for_all_seeds(of_method):
                run += new[:1] if first else []
                share += [job.name for job in (new[1:] if first else new)]
            else:
                run += new
    names = [job.name for job in run]
    return Plan(names, reuse, share, needs(config, jobs, len(run)), _seconds(config, run))


def _same_for_all_seeds(jobs: Sequence[Job]) -> bool:
    """Tell whether a method chooses the same windows with two seeds, and so with all."""
    chosen = [pipeline.calibrate(job.config, job.model)[0].digest for job in jobs[:2]]
    return chosen[0] == chosen[1]


def _seconds(config: SuiteConfig, run: Sequence[Job]) -> float | None:
    """Estimate the suite's duration from finished cells: of the same method where there are any."""
    total = 0.0
    experiment = runs.experiment_of(tracking.active_run_id())
    for job in run:
        same = ("model", "n_calibration_samples", "seq_len", "quant_bits", "do_downstream")
        params = {name: tracking.as_text(getattr(job.config, name)) for name in same}
        times = runs.finished_times(experiment, params)
        known = times.get(job.config.method) or [t for own in times.values() for t in own]
        if not known:
            return None
        total += sum(known) / len(known)
    return total / config.workers


def needs(config: SuiteConfig, jobs: Sequence[Job], to_run: int) -> list[Need]:
    """Return what the suite needs of tokens, memory and disk against what there is."""
    found = []
    for model in dict.fromkeys(job.model for job in jobs):
        pool = pipeline.token_pool(model, config.corpus)
        tokens = config.n_calibration_samples * config.seq_len
        name = corpora.load(config.corpus).name
        found.append(
            Need(f"calibration tokens of {name}, {model.label}", tokens, len(pool.tokens), "tokens")
        )
    shapes = {job.model: Weights.of(job.model) for job in jobs}
    device = jobs[0].config.device if jobs else "cpu"
    dense = max((weights.dense for weights in shapes.values()), default=0.0)
    if config.executor == "local":
        found.append(_memory(device, dense, config.workers))
    return [*found, *_disk(config, shapes, to_run)]


def _memory(device: str, dense: float, workers: int) -> Need:
    """Hold the model's weights in half precision, the least a cell needs, against what is free."""
    if device == "cpu":
        import psutil

        return Need("memory", workers * dense / GB, psutil.virtual_memory().available / GB, "GB")
    import torch

    on_one = math.ceil(workers / torch.cuda.device_count())
    return Need("CUDA memory", on_one * dense / GB, torch.cuda.mem_get_info(device)[0] / GB, "GB")


def _disk(config: SuiteConfig, shapes: dict[Model, Weights], to_run: int) -> list[Need]:
    """Sum up, by file system, what stays for ever and what is there while cells are at work."""
    sizes = [weights.quantized(config.quant_bits) for weights in shapes.values()]
    largest, mean = max(sizes, default=0.0), sum(sizes) / max(1, len(sizes))
    places = {Path(tempfile.gettempdir()): config.workers * largest}
    places[cache_dir()] = config.workers * largest if config.save_model == "artifact" else 0.0
    kept = store.artifact_folder() if config.save_model == "artifact" else Path.cwd()
    if kept is not None and config.save_model != "none":
        places[kept] = places.get(kept, 0.0) + to_run * mean
    by_system: dict[int, tuple[Path, float]] = {}
    for place, size in places.items():
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        path, sum_so_far = by_system.get(there.stat().st_dev, (there, 0.0))
        by_system[there.stat().st_dev] = (path, sum_so_far + size)
    return [
        Need(f"disk at {path}", size / GB, shutil.disk_usage(path).free / GB, "GB")
        for path, size in by_system.values()
    ]


@dataclass(frozen=True)
class Weights:
    """Numbers of weights, from the headers of the safetensors: in the layers, and the others."""

    layers: int
    others: int

    @classmethod
    def of(cls, model: Model) -> Weights:
        """Read the headers; UserError if a file is damaged or cut off."""
        layers = others = 0
        for file in sorted(model.path.glob("*.safetensors")):
            for name, tensor in _header(file).items():
                count = math.prod(tensor["shape"])
                inside = len(tensor["shape"]) == 2 and "layers." in name
                layers, others = layers + inside * count, others + (not inside) * count
        return cls(layers, others)

    @property
    def dense(self) -> float:
        """Return the bytes in half precision."""
        return 2.0 * (self.layers + self.others)

    def quantized(self, bits: int) -> float:
        """Return the bytes of a checkpoint; scales and zeros of groups of 32 at most added."""
        return self.layers * (bits + 1) / 8 + 2.0 * self.others


def _header(file: Path) -> dict[str, Any]:
    """Return name → shape, type and place of each tensor (format: huggingface/safetensors)."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header: dict[str, Any] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        size = 8 + length + max(tensor["data_offsets"][1] for tensor in header.values())
    except (OSError, ValueError, KeyError, TypeError, struct.error, MemoryError) as error:
        raise UserError(f"{file} is damaged: its header cannot be read ({error}).") from error
    if size != file.stat().st_size:
        raise UserError(
            f"{file} is damaged: it has {file.stat().st_size:,} bytes, its header says {size:,}. "
            "Fetch the model again."
        )
    return header


def check(needed: Sequence[Need]) -> None:
    """Raise UserError for the first thing of which there is certainly not enough."""
    for need in needed:
        if need.needed > need.available:
            raise UserError(
                f"{need.sentence()}. Make room, or ask for less: fewer workers, a smaller model, "
                "save_model=none."
            )
