"""Workers on a Ray cluster: actors, each with a GPU or some CPUs, that keep models loaded.

Every machine needs Ray and the project's libraries in the same versions; the suite sends the code
itself. If an actor or its node fails, one worker is lost. Nodes that join later get workers too.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from colazero import devices
from colazero.errors import UserError, log_discreetly
from colazero.store import claims, provenance, record
from colazero.store import open as store
from colazero.suite.cells import Executor, Place, Worker
from colazero.suite.worker import Event, Job, Sender, failed, run_job, thread_limits
from colazero.suite_settings import SuiteConfig

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 100 * 2**20
"""Object store of a cluster that the suite starts. It only holds events; Ray needs 75 MiB."""
INHERITED = ("MLFLOW_", "HF_TOKEN", "COLAZERO_PATIENCE")
"""Prefixes of the variables that workers get from the suite's environment."""
LOOK_SEC = 5.0
"""Seconds between two looks for nodes without workers."""
STARTS = 3
"""How many workers may end on a node before they have begun a cell."""


def needs(config: SuiteConfig) -> dict[str, float]:
    """Return the CPUs and GPUs that a cell takes of a node."""
    has_gpu = any(node["Resources"].get("GPU") for node in nodes())
    gpu = config.device.startswith("cuda") or (config.device == "auto" and has_gpu)
    return {"CPU": config.cpus_per_cell, "GPU": float(gpu)}


def nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def room(node: Mapping[str, Any], needs: Mapping[str, float]) -> int:
    """Return how many cells fit a node that nothing else uses."""
    return min(int(node["Resources"].get(name, 0) / n) for name, n in needs.items() if n)


def connect(address: str) -> None:
    """Join the cluster at `address`, or start one on this machine if it is `local`."""
    if address.startswith("ray://"):
        raise UserError(
            f"ray_address={address!r}: a suite cannot be run through Ray's client. Run it on a "
            "machine of the cluster, with ray_address=HOST:PORT."
        )
    if ray.is_initialized():
        return
    if address != "local":
        _refuse_silent(address)
    ours = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    more = ours if address == "local" else {}
    code = {"py_modules": [str(provenance.ROOT / "colazero")], "excludes": ["**/__pycache__"]}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, runtime_env=code, logging_level=logging.ERROR, **more)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"ray_address={address!r}: the cluster cannot be joined from this machine, which must "
            f"be one of its nodes (ray start --address={address}): {str(error).splitlines()[0]}"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own in the place of ours


def _refuse_silent(address: str) -> None:
    """Raise UserError if nothing listens at `address`: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"ray_address={address!r}: no Ray cluster is there ({error}). Give the HOST:PORT that "
            "`ray start --head` printed, or local to start one on this machine."
        ) from error


def refuse_if_too_small(config: SuiteConfig) -> None:
    asked = needs(config)
    if any(room(node, asked) for node in nodes()):
        return
    there = ", ".join(
        f"{node['NodeManagerAddress']} ({node['Resources'].get('CPU', 0):g} CPUs, "
        f"{node['Resources'].get('GPU', 0):g} GPUs)"
        for node in nodes()
    )
    raise UserError(
        f"no node of the Ray cluster has room for a cell: it takes {asked['CPU']:g} CPUs "
        f"(cpus_per_cell) and {asked['GPU']:g} GPUs (device={config.device}), and there are: "
        f"{there}."
    )


class Remote:
    """A worker on a node: it computes one job while results of others are sent."""

    def __init__(self, environment: Mapping[str, str], directory: Path) -> None:
        """Set the environment before torch is imported, and the suite's working directory.

        Without that directory, relative paths do not work on this machine.
        """
        os.environ.update(environment)
        log_discreetly(bars=False)
        with suppress(OSError):
            os.chdir(directory)
        self._sender = Sender()

    def begin(self, suite: str, versions: Mapping[str, str]) -> str | None:
        """Import what cells need; return why this machine must not run cells, or None.

        versions: of the suite's process. With others, results could not be compared.
        """
        import colazero.cell  # noqa: F401

        mine = provenance.environment()
        other = [f"{k} {mine.get(k)}, not {v}" for k, v in versions.items() if mine.get(k) != v]
        if other:
            return f"its libraries differ from those of the suite's process: {'; '.join(other)}"
        try:
            claims.refuse_unless_shared(suite)
        except UserError as error:
            return str(error)
        return None

    def do(self, job: Job) -> Iterator[Event]:
        """Do a job and yield its events as they come."""
        said: SimpleQueue[Event] = SimpleQueue()

        def work() -> None:
            try:
                run_job(_with_model_here(job), said.put, self._sender)
            except BaseException as error:  # otherwise no event would come
                event = failed(job, error)
                claims.give_up(job.run_id, event.data["reason"])
                said.put(event)

        threading.Thread(target=work, daemon=True).start()
        last = False
        while not last:
            event = said.get()
            last = event.last
            yield event


def _with_model_here(job: Job) -> Job:
    """Return the job with a model on this machine, fetched if necessary."""
    from colazero import models

    if job.model.path.is_dir():
        return job
    model = models.fetch(job.model.name)
    if model.revision != job.model.revision:
        raise UserError(
            f"model {model.name!r} is another one on this machine (revision {model.revision}) than "
            f"where the suite was started ({job.model.revision})."
        )
    return replace(job, model=model)


def _gpu(needs: Mapping[str, float]) -> dict[str, str]:
    """Return the variables by which a worker sees the GPU that Ray gives it, or none."""
    return devices.settings() if needs["GPU"] else devices.showing(None)


@dataclass(eq=False)
class _Worker(Worker):
    """An actor, and what it `says` next: whether it started, or a stream of a job's events.

    sending: streams of computed jobs whose results are being sent → names of the jobs.
    """

    actor: Any
    node: str
    where: str
    says: Any
    ready: bool = False
    sending: dict[Any, str] = field(default_factory=dict)


class RayExecutor(Executor[_Worker]):
    """As many workers as fit the cluster, also on nodes that join later."""

    def __init__(self, config: SuiteConfig, _: Place, environment: Mapping[str, str]) -> None:
        self._needs = needs(config)
        self._setting = {
            **{k: v for k, v in os.environ.items() if k.startswith(INHERITED)},
            **environment,
            **thread_limits(max(1, int(config.cpus_per_cell))),
            **_gpu(self._needs),
            "COLAZERO_CODE": json.dumps(provenance.git_state()),
        }
        self._setting.pop("MLFLOW_RUN_ID", None)  # that is the suite's own run
        self._suite = record.active_run_id()
        claims.log_proof(self._suite, {"nodes": nodes(), "a cell takes": self._needs})
        self._workers: list[_Worker] = []
        self._refused: set[str] = set()
        self._failed_starts: Counter[str] = Counter()
        self._lost_with_others: list[Event] = []
        self._next_look = 0.0
        self._fill()

    @staticmethod
    def check(config: SuiteConfig) -> None:
        if config.device.startswith("cuda:"):
            raise UserError(
                f"device={config.device!r}: Ray gives every cell a GPU of its own. Use "
                "device=cuda, cpu or auto."
            )
        connect(config.ray_address)
        here = ray.util.get_node_ip_address()
        elsewhere = any(node["NodeManagerAddress"] != here for node in nodes())
        store.refuse_unshareable(several_machines=elsewhere)
        refuse_if_too_small(config)

    @staticmethod
    def place(config: SuiteConfig) -> Place:
        asked = needs(config)
        count = sum(room(node, asked) for node in nodes())
        return Place("cuda:0" if asked["GPU"] else "cpu", count, here=False)

    def accepts(self, ready: Sequence[Job]) -> Job | None:
        self._forget_gone()
        return super().accepts(ready)

    def _forget_gone(self) -> None:
        """Remove free workers whose node has left: no event reports that."""
        there = {node["NodeID"] for node in nodes()}
        for worker in self._free():
            if worker.node not in there:
                log.warning("node %s has left the cluster, with a free worker", worker.where)
                self._remove(worker)

    def _free(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.ready and worker.job is None]

    def _give(self, worker: _Worker, job: Job) -> None:
        there = replace(job, model=replace(job.model, path=job.model.path.resolve()))
        worker.says = worker.actor.do.remote(there)

    def events(self, timeout: float) -> list[Event]:
        if time.monotonic() >= self._next_look:
            self._fill()
        found, self._lost_with_others = self._lost_with_others, []
        while said := self._streams():
            heard, _ = ray.wait(list(said), num_returns=1, timeout=0.0 if found else timeout)
            if not heard:
                return found
            found += self._understand(said[heard[0]], heard[0])
            timeout = 0.0
        if not found:
            time.sleep(timeout)
        return found

    def stop(self, job: Job) -> None:
        self._remove(next(worker for worker in self._workers if worker.job == job))

    def close(self) -> None:
        for worker in list(self._workers):
            self._remove(worker)
        ray.shutdown()

    def _streams(self) -> dict[Any, _Worker]:
        """Return every pending stream → its worker."""
        sending = {stream: worker for worker in self._workers for stream in worker.sending}
        return sending | {w.says: w for w in self._workers if w.says is not None}

    def _understand(self, worker: _Worker, stream: Any) -> list[Event]:
        """Return a stream's next events, and update which workers are free."""
        starts = worker.job is None and stream == worker.says
        try:
            event = ray.get(stream if starts else next(stream))
        except (ray.exceptions.RayError, StopIteration) as error:
            return self._lost(worker, f"{type(error).__name__}: {_last_line(error)}")
        if starts:
            worker.says, worker.ready = None, event is None
            if worker.ready:
                log.info("worker on %s is ready", worker.where)
            else:
                self._remove(worker)
                self._refuse(worker, event)
            return []
        if stream in worker.sending:
            del worker.sending[stream]
        elif event.kind != "stage":
            if not event.last:
                worker.sending[stream] = event.job
            worker.job = worker.says = None
        return [event]

    def _lost(self, worker: _Worker, how: str) -> list[Event]:
        self._remove(worker)
        reason = f"the worker on {worker.where} was lost ({how})"
        if worker.job:
            return [Event(worker.job.name, "lost", {"reason": reason})]
        log.warning("%s", reason)
        self._failed_starts[worker.node] += 1
        if self._failed_starts[worker.node] >= STARTS:
            self._refuse(worker, f"no worker starts there ({how})")
        return []

    def _refuse(self, worker: _Worker, reason: str) -> None:
        """Give a node no more cells; UserError if no other node is left."""
        log.error("no cells for node %s: %s", worker.where, reason)
        self._refused.add(worker.node)
        if all(node["NodeID"] in self._refused for node in nodes()):
            raise UserError(f"no node of the Ray cluster can do cells. {worker.where}: {reason}")

    def _remove(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        lost = {"reason": f"the worker on {worker.where} was lost while it sent the result"}
        self._lost_with_others += [Event(job, "lost", lost) for job in worker.sending.values()]
        ray.kill(worker.actor)
        self._next_look = 0.0

    def _fill(self) -> None:
        """Start workers on nodes with free room."""
        self._next_look = time.monotonic() + LOOK_SEC
        self._forget_gone()
        used = Counter(worker.node for worker in self._workers)
        for node in nodes():
            name = node["NodeID"]
            if name not in self._refused:
                for _ in range(room(node, self._needs) - used[name]):
                    self._workers.append(self._launch(name, node["NodeManagerAddress"]))
        if not self._workers:
            log.warning("no node of the Ray cluster is large enough for a cell: waiting for one")
            self._next_look += 25

    def _launch(self, node: str, where: str) -> _Worker:
        actor = (
            ray.remote(Remote)
            .options(
                num_cpus=self._needs["CPU"],
                num_gpus=self._needs["GPU"],
                max_concurrency=2,  # a result is sent while the next job is computed
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote(self._setting, Path.cwd())
        )
        begun = actor.begin.remote(self._suite, provenance.environment())
        return _Worker(actor, node, where, begun)


def _last_line(error: BaseException) -> str:
    """Return the last line of a Ray error: the cause, if it quotes a traceback."""
    return ([line for line in str(error).splitlines() if line.strip()] or [""])[-1].strip()
