"""Suites in an MLflow store, with the structure that the suite entry point gives them."""

import hashlib
import time
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

SETTINGS = {
    "corpus": "sotu",
    "n_calibration_samples": "8",
    "seq_len": "512",
    "quant_bits": "4",
    "group_size": "64",
    "desc_act": "false",
    "sym": "true",
    "damp_percent": "0.05",
    "act_group_aware": "true",
    "eval_corpora": "sotu",
    "eval_windows": "16",
    "do_downstream": "false",
    "downstream_tasks": "arc_easy,hellaswag",
    "save_model": "none",
    "device": "cpu",
}
VERSIONS = {
    "version.torch": "2.13.0",
    "version.transformers": "5.23.0",
    "version.gptqmodel": "7.6.0",
    "colazero.git_commit": "0123456789abcdef",
    "colazero.git_dirty": "false",
}
UNQUANTIZED = 20.0
WINDOWS, TOKENS = 16, 511
METHODS = {"gptq_default": (24.0, 0.0), "random": (23.4, 0.35), "cola_zero": (23.1, 0.30)}
"""Method → mean and standard deviation of its perplexity; one without spread is deterministic."""


class Suites:
    def __init__(self, folder: Path, name: str):
        self.client = MlflowClient()
        self.name = name
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        self.experiment = self.client.create_experiment(name, (folder / digest).as_uri())

    def run(self, kind, params, metrics=None, tags=None, parent=None, status="FINISHED"):
        """Log one run; `status` RUNNING leaves it open."""
        tags = {"colazero.kind": kind, **VERSIONS, **(tags or {})}
        if parent:
            tags["mlflow.parentRunId"] = parent
        now = int(time.time() * 1000)
        run_id = self.client.create_run(self.experiment, start_time=now).info.run_id
        self.client.log_batch(
            run_id,
            metrics=[Metric(k, v, now, 0) for k, v in (metrics or {}).items()],
            params=[Param(k, str(v)) for k, v in params.items()],
            tags=[RunTag(k, v) for k, v in tags.items()],
        )
        if status != "RUNNING":
            self.client.set_terminated(run_id, status)
        return run_id

    def suite(self, models=("smollm2-135m",), methods=METHODS, seeds=5, windows=True, **change):
        """Log a whole suite and return its run id, with the parent still open.

        `change` maps (model, method, seed) joined by `/` to what is different in that cell:
        a dict that may hold params, metrics, tags, status; None leaves the cell out.
        """
        names = [str(42 + i) for i in range(seeds)]
        params = SETTINGS | {"models": "auto", "methods": "auto", "seeds": "42-46"}
        params |= {"resolved.models": ",".join(models), "resolved.methods": ",".join(methods)}
        parent = self.run("suite", params | {"resolved.seeds": ",".join(names)}, status="RUNNING")
        for i, model in enumerate(models):
            rng = np.random.default_rng(i)
            base = rng.normal(3.0, 0.15, WINDOWS)
            self._baseline(parent, model, base, windows, change.get(f"{model}/unquantized", {}))
            for method, (mean, std) in methods.items():
                source = None
                noise = rng.normal(size=seeds)
                for k, seed in enumerate(names):
                    one = change.get(f"{model}/{method}/{seed}", {})
                    if one is None:
                        continue
                    value = mean + std * noise[k]
                    shift = np.log(value / UNQUANTIZED) + rng.normal(0, 0.004, WINDOWS)
                    nll = (base + shift) if windows else None
                    run_id = self._cell(parent, model, method, seed, value, nll, source, one)
                    source = source or (run_id if std == 0 else None)
        return parent

    def _baseline(self, parent, model, nll, windows, change):
        if change is None:
            return
        metrics = {"perplexity": UNQUANTIZED, "perplexity.sotu": UNQUANTIZED}
        run_id = self.run(
            "baseline",
            {"model": model, "method": "unquantized"},
            metrics | change.get("metrics", {}),
            change.get("tags"),
            parent,
            change.get("status", "FINISHED"),
        )
        if windows:
            self.windows(run_id, nll)

    def _cell(self, parent, model, method, seed, value, nll, source, change):
        status = change.get("status", "FINISHED")
        params = SETTINGS | {"model": model, "method": method, "seed": seed}
        metrics = {
            "perplexity": value,
            "perplexity.sotu": value,
            "nll_per_token": np.log(value),
            "selection_time_sec": {"cola_zero": 6.0, "random": 0.2}.get(method, 0.1),
            "quant_time_sec": 20.0 + len(method) / 10,
            "eval_time_sec": 4.0,
            "total_time_sec": 31.0,
        }
        tags = {"colazero.calibration_digest": f"{method}-{seed if source is None else 42}"}
        if source:
            tags["colazero.source_run"] = source
        if status != "FINISHED":
            metrics, tags = {}, {"colazero.error": "ValueError: no luck"}
        run_id = self.run(
            "cell",
            params | change.get("params", {}),
            metrics | change.get("metrics", {}),
            tags | change.get("tags", {}),
            parent,
            status,
        )
        if nll is not None and status == "FINISHED" and source is None:
            self.windows(run_id, nll)
        return run_id

    def windows(self, run_id, nll):
        """Log the NLL a token of each window [windows] as the evaluation does, summed."""
        rows = {"start": np.arange(WINDOWS) * 512, "nll": nll * TOKENS, "tokens": TOKENS}
        table = pd.DataFrame(rows).rename_axis("window").reset_index()
        info = self.client.get_run(run_id).info
        folder = Path(info.artifact_uri.removeprefix("file://")) / "evaluation"
        folder.mkdir(parents=True)
        table.to_parquet(folder / "windows_sotu.parquet")
