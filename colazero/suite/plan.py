"""Plan a suite: which cells run, what they need, and whether this machine has enough."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from mlflow.entities import Run

from colazero import cell, corpora, devices, models, pipeline, reuse
from colazero.cache import cache_dir
from colazero.corpora.chat import Writing
from colazero.corpora.documents import lay
from colazero.corpora.tokens import token_pool
from colazero.errors import UserError
from colazero.quantizers import UNQUANTIZED
from colazero.quantizers.supported import refused_by_vllm
from colazero.settings import GPTQ, canonical_key
from colazero.store import client, fetch, publish, record
from colazero.suite import memory
from colazero.suite.cells import Place, counted, extra_runs
from colazero.suite.memory import GB, Weights
from colazero.suite.worker import Job
from colazero.suite_settings import SuiteConfig

REVISION = "colazero.model_revision"
SAME_TIME = ("quantizer", "n_calibration_samples", "seq_len", "quant_bits", "do_downstream")
"""Settings of a finished cell that must be the same for its duration to count."""


def usable(config: SuiteConfig, model_name: str, device: str) -> list[Job]:
    """Return a model's jobs; UserError if it cannot be fetched or does not fit the settings."""
    model = models.fetch(model_name)
    Weights.of(model)
    mine = [one for one in config.cells() if one.model == model_name]
    resolved = [pipeline.resolve(one, model, device) for one in mine]
    jobs: dict[str, Job] = {}
    step = len(resolved) // len(config.settings())
    for asked, one in zip(mine[::step], resolved[::step], strict=True):  # the first of each setting
        pipeline.check_data(one, model)
        for name, quantizer in extra_runs(config, one).items():
            if quantizer == UNQUANTIZED:
                jobs.setdefault(name, Job(name, "baseline", one, model))
            else:  # a control needs no calibration; its quantizer stands in the method's place
                control = asked.model_copy(update={"method": quantizer, "quantizer": quantizer})
                control = pipeline.resolve(control, model, device)
                jobs.setdefault(name, Job(name, "control", control, model))
    cells = [Job(cell.name_of(one, config.sweep), "cell", one, model) for one in resolved]
    return [*jobs.values(), *cells]


class Finished:
    """The finished runs of the models of a suite, from one search of the store per model."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        homes = client.homes(client.experiment_of(record.active_run_id()))
        revisions = dict.fromkeys(job.model.revision for job in jobs)

        def search() -> list[Run]:
            return [
                run
                for revision in revisions
                for run in client.search(homes, tags={REVISION: revision}, status="FINISHED")
                if client.SOURCE not in run.data.tags
            ]

        self._runs = client.patiently(search)  # of each model the newest first
        self._by_key: dict[str, list[Run]] = {}
        self._newest: dict[str, Run] = {}
        for run in self._runs:
            tags = run.data.tags
            self._by_key.setdefault(tags.get("colazero.key", ""), []).append(run)
            self._newest.setdefault(tags.get("colazero.config", ""), run)

    def divide(self, jobs: Sequence[Job]) -> tuple[list[Job], list[Job]]:
        """Divide cells and controls into jobs to run and jobs that a finished run has done."""
        run: list[Job] = []
        done: list[Job] = []
        for job in jobs:
            if job.kind != "baseline":
                key = reuse.key_of(job.config, job.model)
                finished = any(publish.intact(one) for one in self._by_key.get(key, ()))
                (done if finished else run).append(job)
        return run, done

    def why_new(self, run: Sequence[Job]) -> dict[str, list[str]]:
        """Return why cells of `run` are not reused: reason → names of cells.

        Cells without a finished run of the same parameters have no reason.
        """
        reasons: dict[str, list[str]] = {}
        for job in run:
            finished = self._newest.get(canonical_key(job.config))
            if not finished:
                reason = fetch.older_version(record.params_of(job.config), self._runs)
            elif "colazero.halved" in finished.data.tags:
                reason = "memory ran out in it"
            else:
                before = fetch.read_json(finished, reuse.CONTEXT)
                now = reuse.facts(job.config, job.model)
                different = reuse.differences(before, now) if before is not None else ""
                reason = different or "its files are gone or damaged"
            if reason:
                reasons.setdefault(reason, []).append(job.name)
        return reasons

    def times(self, run: Sequence[Job]) -> dict[str, float | None]:
        """Estimate each cell's seconds: the mean of finished cells of its method, or else of any.

        By name; None if there are no finished cells of its settings.
        """
        took: dict[tuple[str, ...], dict[str, list[float]]] = {}
        for finished in self._runs:
            tags, params = finished.data.tags, client.params_of(finished)
            seconds = client.metrics_of(finished).get("total_time_sec")
            if tags.get(client.KIND) == "cell" and seconds is not None:
                setting = [params.get(name, "") for name in SAME_TIME]
                alike = took.setdefault((tags[REVISION], *setting), {})
                alike.setdefault(params.get("method", ""), []).append(seconds)
        found: dict[str, float | None] = {}
        for job in run:
            values = record.params_of(job.config, SAME_TIME).values()
            alike = took.get((job.model.revision, *values), {})
            known = alike.get(job.config.method) or [one for own in alike.values() for one in own]
            found[job.name] = sum(known) / len(known) if known else None
        return found


@dataclass(frozen=True)
class Need:
    """A resource: how much a suite needs, and how much is available, in `unit`."""

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
    """The cells to run and to reuse, what they need, and how long they may take.

    seconds: None if there is no finished run of these settings. why: why cells run although others
    of their parameters are finished, as reason → names. expected: with until=settled the number of
    cells expected, under which assumption, of `most`. cells: bytes that a cell needs, per model.
    left_out: models that do not fit this machine → why. notes: what the suite cannot find.
    at_once: how many cells run at once, and on how many GPUs of this machine.
    """

    run: list[str]
    reuse: list[str]
    needs: list[Need]
    seconds: float | None
    why: dict[str, list[str]] = field(default_factory=dict)
    expected: dict[str, float] = field(default_factory=dict)
    most: int = 0
    cells: dict[str, memory.Room] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    at_once: str = ""

    def text(self) -> str:
        lines = []
        for title, names in (("run", self.run), ("reuse", self.reuse)):
            lines.append(f"{counted(len(names), 'cell')} to {title}" + (":" if names else ""))
            lines += [f"  {name}" for name in names]
        for what, cells in self.expected.items():
            lines.append(f"about {cells:.0f} of these cells, {self.most} at most, {what}")
        lines += said(self.why)
        for name, room in self.cells.items():
            least, full, main = (f"{b / GB:,.1f} GB" for b in (room.least, room.full, room.main))
            gpu = f"{least} on the GPU ({full} at full speed) and " if room.full else ""
            lines.append(f"a cell of {name} needs at least {gpu}{main} of main memory")
        lines += [self.at_once] if self.at_once else []
        lines += [f"model {name} is left out: {why}" for name, why in self.left_out.items()]
        lines += [need.sentence() for need in self.needs]
        lines += self.notes
        if self.seconds is None:
            lines.append("time: unknown, there is no finished run with these settings")
        else:
            lines.append(f"time: about {counted(max(1, round(self.seconds / 60)), 'minute')}")
        return "\n".join(lines)


Expect = Callable[[int, Sequence[int]], Mapping[str, float]]
"""(methods, looks) → under which assumption → the share of the cells until all is settled."""


def make(config: SuiteConfig, place: Place, jobs: Sequence[Job], expect: Expect) -> Plan:
    """Plan a suite inside an open run. It takes seconds, since nothing is selected."""
    expected, most = {}, sum(job.kind == "cell" for job in jobs)
    if config.until == "settled":
        shares = expect(len(config.methods), config.schedule)
        expected = {what: share * most for what, share in shares.items()}
    finished = Finished(jobs)
    run, done = finished.divide(jobs)
    left_out = memory.too_large(place, run)
    run = [job for job in run if job.model.name not in left_out]
    times = finished.times(run).values()
    known = [seconds for seconds in times if seconds is not None]
    return Plan(
        run=[job.name for job in run if job.kind == "cell"],
        reuse=[job.name for job in done if job.kind == "cell"],
        needs=needs(config, place, jobs, run),
        seconds=sum(known) / place.workers if len(known) == len(times) else None,
        why=finished.why_new(run),
        expected=expected,
        most=most,
        cells=memory.rooms(place, run),
        left_out=left_out,
        notes=[*notes(config), *unserved(run)],
        at_once=cells_at_once(place),
    )


def notes(config: SuiteConfig) -> list[str]:
    """Return warnings about settings that cannot answer the question, or have no effect."""
    lines = []
    if len(config.seeds) == 1 and len(config.methods) > 1:
        (seed,) = config.seeds
        more = f"seeds=1-{seed}" if 1 < seed < 100 else f"seeds={seed}-{seed + 4}"
        lines.append(
            f"seeds={seed} is one seed, and one seed per method compares nothing: {more} is "
            f"{counted(seed if 1 < seed < 100 else 5, 'seed')}"
        )
    if config.eval_windows == 1:
        lines.append(
            "eval_windows=1: one evaluation window shows nothing about other text; 16 or more do"
        )
    if config.executor == "local" and config.ray_address != "local":
        lines.append(f"ray_address={config.ray_address} is not used: it needs executor=ray")
    return lines


def unserved(run: Sequence[Job]) -> list[str]:
    """Return a sentence for each kind of GPTQ checkpoint of `run` that vLLM does not load."""
    kinds = {
        (job.config.quant_bits, job.config.group_size, job.config.sym)
        for job in run
        if job.config.quantizer in (*GPTQ, "rtn") and job.config.save_model != "none"
    }
    return [why for kind in sorted(kinds) if (why := refused_by_vllm(*kind))]


def cells_at_once(place: Place) -> str:
    """Return how many cells run at once on this machine; '' if they run elsewhere."""
    if not place.here:
        return ""
    workers, cards = place.workers, len(place.gpus)
    said = f"{counted(workers, 'cell')} at once"
    if cards:
        said += f" on {counted(min(workers, cards), 'GPU')}"
    if cards > workers:
        said += f"; {cards - workers} of {cards} GPUs stay idle, as workers={workers} was asked for"
    return said


def refuse_all_left_out(left_out: Mapping[str, str], left: Collection[object]) -> None:
    """Raise UserError if models do not fit this machine and nothing is left to run."""
    if left_out and not left:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise UserError(f"no model of the suite has room here. {reasons}. Take smaller models.")


def said(why: Mapping[str, Sequence[str]]) -> list[str]:
    """Return one line per reason, with the number of cells."""
    return [
        f"{counted(len(names), 'cell')} not reused, although finished with the same parameters: "
        f"{reason}"
        for reason, names in why.items()
    ]


def needs(config: SuiteConfig, place: Place, jobs: Sequence[Job], run: Sequence[Job]) -> list[Need]:
    """Return the tokens, memory and disk that the suite needs, and what is available.

    run: those of `jobs` that are to run. Memory and disk of other machines are unknown and left
    out.
    """
    found = []
    tokens = max(config.n_calibration_samples) * max(config.seq_len)
    for model in dict.fromkeys(job.model for job in jobs):
        for corpus, chat in product(config.corpus, config.chat):
            writing = Writing(chat, config.chat_template_kwargs)
            pool = token_pool(model, corpus, writing=writing)
            if config.windows == "document":
                pool = lay(pool, max(config.seq_len)).pool
            available = int(config.corpus_share * len(pool.tokens))
            written = f", chat={chat}" * (len(config.chat) > 1)
            name = f"calibration tokens of {corpora.load(corpus).name}{written}, {model.label}"
            found.append(Need(name, tokens, available, "tokens"))
    sizes = [
        Weights.of(job.model).checkpoint(job.config)
        for job in run
        if job.config.quantizer != UNQUANTIZED
    ]
    workers = min(place.workers, len(run)) if place.here else 0
    if workers:
        found += _memory(place, run, workers)
    first = {(job.model.name, job.config.evaluated_len): job for job in run} if place.here else {}
    hidden = sum(memory.cached_hidden(job.config, job.model) for job in first.values())
    return [*found, *_disk(config, place, sizes, workers, hidden)]


def _memory(place: Place, run: Sequence[Job], workers: int) -> list[Need]:
    """Return the least GPU and main memory that all workers need together, and what is free."""
    rooms = memory.rooms(place, run).values()
    main = workers * max(room.main for room in rooms)
    found = [Need("memory", main / GB, devices.main_memory() / GB, "GB")]
    card = memory.free_on_card(place)
    if card:
        on_one = math.ceil(workers / len(place.gpus))
        gpu = on_one * max(room.least for room in rooms)
        found.append(Need(f"CUDA memory of {card[0]}", gpu / GB, card[1] / GB, "GB"))
    return found


def _disk(
    config: SuiteConfig, place: Place, sizes: Sequence[float], workers: int, hidden: float
) -> list[Need]:
    """Return the disk space per file system: kept files, and files of cells in progress.

    hidden: bytes of unquantized models' hidden states, which stay in the cache.
    """
    each = 2 if config.save_model == "artifact" else 1  # one is sent while the next is computed
    at_work = min(len(sizes), each * workers) * max(sizes, default=0.0)
    places = [(cache_dir(), at_work + hidden)]
    if config.save_model == "artifact":
        if kept := record.artifact_folder():
            places.append((kept, sum(sizes)))
    elif config.save_model == "local" and place.here:
        places.append((Path.cwd(), sum(sizes)))
    by_system: dict[int, tuple[Path, float]] = {}
    for folder, size in places:
        there = next(one for one in (folder, *folder.parents) if one.exists())
        path, sum_so_far = by_system.get(there.stat().st_dev, (there, 0.0))
        by_system[there.stat().st_dev] = (path, sum_so_far + size)
    return [
        Need(f"disk at {path}", size / GB, shutil.disk_usage(path).free / GB, "GB")
        for path, size in by_system.values()
    ]


def check(needed: Sequence[Need]) -> None:
    """Raise UserError for the first resource that is not sufficient."""
    for need in needed:
        if need.needed > need.available:
            raise UserError(
                f"{need.sentence()}. Make room, or ask for less: fewer workers, a smaller model, "
                "save_model=none."
            )


class Budget:
    """Decides which jobs still end within the time budget of a suite.

    hours: from now; inf for no limit. known: seconds by name that finished runs suggest; the
    suite's own times count instead as soon as there are any. free: names of cells to be reused.
    """

    def __init__(
        self,
        hours: float = math.inf,
        known: Mapping[str, float | None] | None = None,
        free: Collection[str] = (),
    ) -> None:
        self._end = time.monotonic() + 3600 * hours
        self._known, self._free = dict(known or {}), set(free)
        self._took: dict[tuple[str, str], float] = {}

    def took(self, job: Job, seconds: float) -> None:
        """Record how long a job took: the longest of a method is expected for its next job."""
        key = job.config.model, job.config.method
        self._took[key] = max(seconds, self._took.get(key, 0.0))

    def expected(self, job: Job) -> float:
        """Return the seconds that a job may take; 0 if unknown."""
        model, method = job.config.model, job.config.method
        if (model, method) in self._took:
            return self._took[model, method]
        known = self._known.get(job.name)
        if known is not None:
            return known
        return max((t for (m, _), t in self._took.items() if m == model), default=0.0)

    def fits(self, job: Job) -> bool:
        """Return whether a job that starts now would end in time.

        Reused cells and the unquantized model always fit.
        """
        if job.kind == "baseline" or job.name in self._free:
            return True
        return time.monotonic() + self.expected(job) < self._end
