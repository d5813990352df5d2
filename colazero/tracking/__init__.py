"""All that touches MLflow's store: runs, what is logged of them, and what other runs logged."""

from __future__ import annotations

from colazero.tracking.connecting import connect
from colazero.tracking.log import (
    as_text,
    describe,
    find_finished,
    log_checkpoint,
    log_config,
    log_datasets,
    log_evaluation,
    log_files,
    log_json,
    log_metrics,
    log_params,
    log_quantization,
    newest_finished,
    set_tags,
)
from colazero.tracking.opened import active_run_id, deliver, flush, run, workspace
from colazero.tracking.searching import EXPERIMENT

__all__ = [
    "EXPERIMENT",
    "active_run_id",
    "as_text",
    "connect",
    "deliver",
    "describe",
    "find_finished",
    "flush",
    "log_checkpoint",
    "log_config",
    "log_datasets",
    "log_evaluation",
    "log_files",
    "log_json",
    "log_metrics",
    "log_params",
    "log_quantization",
    "newest_finished",
    "run",
    "set_tags",
    "workspace",
]
