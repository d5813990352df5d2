"""Environment variables, all read and checked here. An empty one counts as not set."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

from colazero.errors import UserError

EMPTY_IS_UNSET = (
    *("COLAZERO_PATIENCE", "COLAZERO_CACHE", "COLAZERO_CODE", "XDG_CACHE_HOME"),
    *("GPTQMODEL_CPU_WORKERS", "OMP_NUM_THREADS"),
    *("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"),
    *("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"),
    *("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"),
)
"""Variables that are removed if they are empty. (An empty CUDA_VISIBLE_DEVICES means: no GPU.)"""


def check() -> None:
    """Raise UserError for a variable with an invalid value."""
    for name in EMPTY_IS_UNSET:
        if os.environ.get(name, "x").strip() == "":
            del os.environ[name]
    patience()
    # GPTQModel 7.6 loads a model with two workers and raises where it may have one.
    _number("GPTQMODEL_CPU_WORKERS", int, "2 or more", lambda n: n >= 2)
    _number("MLFLOW_HTTP_REQUEST_MAX_RETRIES", int, "0 to 10", lambda n: 0 <= n <= 10)
    _number("MLFLOW_HTTP_REQUEST_TIMEOUT", int, "1 or more seconds", lambda n: n >= 1)
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        _number(name, int, "1 or more seconds", lambda n: n >= 1)
    code_of_suite()
    cache = cache_dir()
    if cache.exists() and not cache.is_dir():
        raise UserError(f"COLAZERO_CACHE={str(cache)!r}: this is a file. Name a folder.")


def patience() -> float:
    """Return the seconds during which a store that does not answer is asked again.

    UserError if COLAZERO_PATIENCE is not a number of minutes.
    """
    found = _number("COLAZERO_PATIENCE", float, "0 or more minutes", lambda n: n >= 0)
    return 60 * (30.0 if found is None else found)


def cache_dir() -> Path:
    """Return `$COLAZERO_CACHE`, or `colazero` in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    named = os.environ.get("COLAZERO_CACHE") or str(Path(base, "colazero"))
    return Path(os.path.expanduser(named))


def threads() -> int | None:
    """Return the threads that OpenMP may use; None if OMP_NUM_THREADS is not one number."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdecimal() and int(text) else None


def run_id() -> str | None:
    """Return the run that `mlflow run` has made for this process; None if it made none."""
    return os.environ.get("MLFLOW_RUN_ID") or None


def experiment_id() -> str | None:
    """Return the id of the experiment that the environment names."""
    return os.environ.get("MLFLOW_EXPERIMENT_ID") or None


def experiment_name() -> str | None:
    """Return the name of the experiment that the environment names."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or None


def code_of_suite() -> dict[str, str] | None:
    """Return the git state that a suite on another machine passed on; UserError if not JSON."""
    text = os.environ.get("COLAZERO_CODE")
    if not text:
        return None
    try:
        return {str(name): str(value) for name, value in json.loads(text).items()}
    except (ValueError, AttributeError):
        raise UserError(
            f"COLAZERO_CODE={text!r}: not a JSON object. Only a suite sets this variable: unset it."
        ) from None


def _number(
    name: str, kind: Callable[[str], float], allowed: str, good: Callable[[float], bool]
) -> float | None:
    text = os.environ.get(name)
    if not text:
        return None
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and good(value)):
        raise UserError(f"{name}={text!r} in the environment: must be a number, {allowed}.")
    return value
