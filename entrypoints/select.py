"""Choose a calibration set and log it: `python -m entrypoints.select --method=random --seed=43`."""

from __future__ import annotations

if not __package__:  # as a script, select.py would hide the standard library's `select`
    raise SystemExit("error: run it as `python -m entrypoints.select`, or `colazero select`.")

from collections.abc import Mapping
from typing import Any

from colazero.settings import taken_by
from entrypoints._session import fields, flag, main, start

PARAMETERS = taken_by("selection")
IMATRIX = (
    "true: write llama.cpp's importance matrix of the set too, as imatrix/imatrix.gguf. "
    "Default: false"
)


def run(given: dict[str, str]) -> int:
    wanted = flag(given, "imatrix")
    config = start(given, selects=True)
    from colazero import cell, devices, models, pipeline
    from colazero.quantizers import imatrix
    from colazero.store import client, record

    # Nothing is evaluated here: the test split that must not leak is the corpus's own.
    config = config.model_copy(update={"eval_corpora": (config.corpus,)})
    seed, label = str(config.seed), models.label(config.model)
    name = client.run_name("select", seed, config.method, label)
    with record.run(name, "select") as run_id:
        model = models.fetch(config.model)
        calibration, times = pipeline.calibrate(config, model)
        record.log_config(config, PARAMETERS)
        record.set_tags(devices.tags(config.device))
        cell.log_calibration(config, model, calibration, times)
        if wanted:
            whole, set_name = pipeline.with_bos(config, model, calibration), calibration.digest
            with record.workspace() as work:
                file = work / "imatrix.gguf"
                about = f"{config.method} of {config.corpus}, seed {seed}, digest {set_name}"
                imatrix.write(model.path, whole.windows, config.device, about, file)
                record.log_files(file.parent, "imatrix")
    n, seq_len = calibration.windows.shape
    seconds = times["selection_time_sec"]
    print(f"{n} windows of {seq_len} tokens, digest {calibration.digest}, {seconds:.2f} s")
    print(sentence(calibration.notes))
    print(f"calibration set: runs:/{run_id}\n{client.where(run_id)}")
    return 0


def sentence(notes: Mapping[str, Any]) -> str:
    """Return the measures of a calibration set in a sentence."""
    distance = "holds tokens that the corpus lacks"
    if "kl_from_corpus_bits" in notes:
        distance = f"KL divergence from the corpus {notes['kl_from_corpus_bits']:.3f} bits"
    return (
        f"{notes['documents_used']:,} documents used ({100 * notes['documents_share']:.1f} %), "
        f"type-token ratio {notes['type_token_ratio']:.3f}, "
        f"entropy {notes['entropy_bits']:.2f} bits, "
        f"{distance}, "
        f"{100 * notes['test_13gram_overlap']:.2f} % of its 13-grams in the test split"
    )


if __name__ == "__main__":
    main(__doc__, fields(PARAMETERS, imatrix=IMATRIX), run)
