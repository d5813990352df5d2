"""What decides a result beside the parameters."""

from __future__ import annotations

from colazero import corpora, models, selection
from colazero.config import RunConfig, Settings
from colazero.corpora.tokens import vocabulary
from colazero.interfaces import Model
from colazero.quantizers import WITHOUT_CALIBRATION


def data_context(config: Settings, model: Model) -> dict[str, str]:
    """Return what decides a result beside the parameters: revisions of model and data."""
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


def method_context(config: RunConfig) -> dict[str, str]:
    """Return what decides a selection beside parameters and data: the method's source, its proxy.

    These are no part of what decides the work done on a calibration set that is there already.
    """
    if config.quantizer in WITHOUT_CALIBRATION:
        return {}
    facts = {"method source": selection.source_digest(config.method)}
    if selection.uses_proxy(config.method):
        facts["proxy model"] = models.fetch(config.proxy_model).revision
    return facts
