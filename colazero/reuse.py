"""What decides that two runs give the same result: parameters, data, libraries, code, device."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from colazero import cache, corpora, devices, models, selection
from colazero.corpora import parts_of
from colazero.corpora.tokens import vocabulary
from colazero.devices import cpu_dtype
from colazero.quantizers import COMPILERS, QUANTIZERS, UNQUANTIZED, WITHOUT_CALIBRATION
from colazero.settings import SELECTION, SETTINGS, RunConfig, Settings, canonical_key
from colazero.types import CalibrationSet, Model

PACKAGE = Path(__file__).resolve().parent
PIPELINE = "colazero.pipeline"
"""Where the imports of a run begin. What only records, plans or draws is not among them."""
LIBRARIES = ("torch", "transformers", "gptqmodel", *COMPILERS)
SELECTING = ("numpy", "scipy", "scikit-learn")
CHOOSING = ("model", *(name for name, one in SETTINGS.items() if one.stages == SELECTION))
"""Parameters that decide which calibration set there is, and nothing that is done with it."""
CONTEXT = "context.json"
"""The artifact with all that decided a cell's result, its parameters apart."""
DEVICE = ("device", "driver", "compute capability")


def data_context(config: Settings, model: Model) -> dict[str, str]:
    """Return what decides a result besides the parameters: revisions of model and data."""
    revisions = {
        name: corpora.load(name).revision for name in (config.corpus, *config.eval_corpora)
    }
    found = {
        "model": model.revision,
        "tokenizer": vocabulary(model).digest,
        **{f"corpus {name}": revision for name, revision in revisions.items()},
    }
    if config.do_downstream:
        from colazero.evaluation import downstream

        found |= downstream.context(config.downstream_tasks)
    return found


def code_context(config: Settings) -> dict[str, str]:
    """Return the libraries' versions, and file → digest of the Python files that a run imports.

    The content of the files counts, tracked or not and committed or not; that of presets stands in
    the parameters. A method's own file is in `method_context`.
    """
    begin = {PIPELINE}
    if config.quantizer != UNQUANTIZED:
        begin.add(QUANTIZERS.get(config.quantizer).__module__)
    for name in (config.corpus, *config.eval_corpora):
        for part in (name, *parts_of(name)):
            begin.add(corpora.CORPORA.get(part.partition(":")[0]).__module__)
    facts = {name: version(name) for name in LIBRARIES}
    backend = PACKAGE.parent / "backends" / config.quantizer.replace("-", "_")
    if backend.is_dir():  # a quantizer in an environment of its own
        facts["backend"] = cache.files_digest(
            sorted(file for file in backend.iterdir() if file.is_file())
        )
    return facts | sources(frozenset(begin))


def sources(begin: frozenset[str]) -> dict[str, str]:
    """Return `source FILE` → 16 hex digits for modules of this package and all that they import.

    As all files were at the first call: what was imported does not change when a file does.
    """
    found = cache.sources(begin, PACKAGE.name, PACKAGE.parent, contents().__getitem__)
    found.pop(f"{PACKAGE.name}/__init__.py", None)  # the version, and settings of the process
    return {f"source {file}": digest[:16] for file, digest in found.items()}


@lru_cache
def contents() -> dict[Path, cache.Source]:
    """Return file → digest and what it imports, of every file of this package."""
    return {file: cache.read_source(file) for file in sorted(PACKAGE.rglob("*.py"))}


def method_context(config: RunConfig) -> dict[str, str]:
    """Return what decides a selection besides parameters and data: source, libraries, proxy.

    It does not decide the work on a calibration set that exists already.
    """
    if config.quantizer in WITHOUT_CALIBRATION:
        return {}
    facts = {"method source": selection.source_digest(config.method)}
    facts |= {name: version(name) for name in SELECTING}
    if selection.uses_proxy(config.method):
        facts["proxy model"] = models.fetch(config.proxy_model).revision
    return facts


def differences(before: dict[str, str], now: dict[str, str]) -> str:
    """Return how two runs of one configuration differ: `torch was 2.13.0 and is 2.14.0; …`."""
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    files = [name.removeprefix("source ") for name in names if name.startswith("source ")]
    said = [f"the source of {', '.join(files)} differs"] if files else []
    for name in names:
        if name in (*LIBRARIES, *SELECTING, *DEVICE):
            said.append(f"{name} was {before.get(name, 'unknown')} and is {now.get(name)}")
        elif not name.startswith("source "):
            said.append(f"{name} differs")
    return "; ".join(said)


def work_context(config: Settings, model: Model) -> dict[str, str]:
    """Return all that decides a result besides the parameters."""
    device = devices.facts(config.device) | {"dtype": cpu_dtype(config.device)}
    return data_context(config, model) | code_context(config) | device


def key_of(config: RunConfig, model: Model) -> str:
    """Return the key that equal cells share, from selection to evaluation."""
    return canonical_key(config, **facts(config, model))


def facts(config: RunConfig, model: Model) -> dict[str, str]:
    """Return all that decides a cell's result, its selection too, other than parameters."""
    return work_context(config, model) | method_context(config)


def work_key(config: RunConfig, context: Mapping[str, str], calibration: CalibrationSet) -> str:
    """Return the key that cells share if their quantization and evaluation are the same work.

    It contains the calibration set in its order, instead of what decided the selection.
    """
    same: dict[str, Any] = {name: RunConfig.model_fields[name].default for name in CHOOSING}
    facts = {k: v for k, v in context.items() if k != f"corpus {config.corpus}"}
    facts |= {f"eval {name}": context[f"corpus {name}"] for name in config.eval_corpora}
    return canonical_key(
        config.model_copy(update=same), **facts, calibration=calibration.order_digest
    )
