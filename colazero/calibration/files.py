"""A calibration set on disk: `windows.safetensors` and `selection.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from colazero.calibration import check as calibration_check
from colazero.corpora.tokens import vocabulary
from colazero.errors import UserError
from colazero.types import CalibrationSet, Corpus, Model, Span


def save_calibration(
    folder: Path,
    calibration: CalibrationSet,
    model: Model,
    corpus: Corpus,
    origin: Mapping[str, Any],
) -> None:
    """Write `windows.safetensors` (`input_ids`, int32 [n, seq_len]) and `selection.json`.

    `origin` says how the set came about (method, seed, corpus name).
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    # safetensors writes an array's memory, whatever its strides.
    windows = np.ascontiguousarray(calibration.windows)
    save_file({"input_ids": windows}, folder / "windows.safetensors")
    about = {
        **origin,
        "digest": calibration.digest,
        "order_digest": calibration.order_digest,
        "corpus_revision": corpus.revision,
        "tokenizer_digest": vocabulary(model).digest,
        "notes": dict(calibration.notes),
        "documents": len({span.document for spans in calibration.spans for span in spans}),
        "spans": [[list(asdict(s).values()) for s in spans] for spans in calibration.spans],
    }
    (folder / "selection.json").write_text(json.dumps(about, indent=1) + "\n")


def load_calibration(folder: Path, model: Model) -> tuple[CalibrationSet, dict[str, Any]]:
    """Read a calibration set back, and what `save_calibration` wrote about it.

    UserError if `folder` holds none, a damaged or unusable one, or one in another model's tokens.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        windows = load_file(folder / "windows.safetensors")["input_ids"].astype(np.int32)
        about = json.loads((folder / "selection.json").read_text())
        spans = [[Span(*span) for span in spans] for spans in about["spans"]]
        expected = about.get("order_digest", about["digest"])
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{folder} holds no calibration set (windows.safetensors and selection.json, as the "
            f"entry point select logs them under calibration/): {error}"
        ) from error
    calibration = CalibrationSet(windows, spans, about["notes"])
    if calibration.order_digest != expected:
        raise UserError(f"the calibration set in {folder} is damaged: its digest does not match.")
    if about["tokenizer_digest"] != vocabulary(model).digest:
        raise UserError(
            f"the calibration set in {folder} was made with another tokenizer than that of model "
            f"{model.name!r}: select again with this model."
        )
    calibration_check.refuse_unusable(windows, vocabulary(model).special)
    return calibration, about
