"""Evaluate any model: `python -m entrypoints.evaluate --preset=demo --model=runs:/ID`."""

from __future__ import annotations

if not __package__:  # as a script, select.py would hide the standard library's `select`
    raise SystemExit("error: run it as `python -m entrypoints.evaluate`, or `colazero evaluate`.")

from colazero.settings import taken_by
from entrypoints._session import KEPT, fields, main, stage_bar, start

PARAMETERS = taken_by("evaluation")


def run(given: dict[str, str]) -> int:
    if given.get("seq_len", "auto") != "auto" and given.get("eval_seq_len", "auto") == "auto":
        given = given | {"eval_seq_len": given["seq_len"]}  # nothing is calibrated here
    inherited = [name for name in PARAMETERS if name not in ("model", "device")]
    config = start(given, source=given.get("model", "auto"), inherited=inherited)
    from colazero import devices, models, pipeline
    from colazero.store import client, fetch, record

    path = config.model
    if path.startswith(KEPT):
        path = str(fetch.fetch_artifacts(path, "model"))
    config = config.model_copy(update={"eval_seq_len": config.evaluated_len})
    model = models.fetch(path)
    pipeline.check_evaluation(config, model)
    name = client.run_name("evaluate", models.label(config.model))
    with record.run(name, "evaluate") as run_id:
        record.set_tags(devices.tags(config.device))
        record.log_config(config, PARAMETERS)
        evaluation = pipeline.evaluate(config, model, model.path, stage_bar(name)("evaluate"))
        metrics = record.log_evaluation(evaluation)
    for key, value in metrics.items():
        print(f"{key}: {value:.6g}")
    print(client.where(run_id))
    return 0


if __name__ == "__main__":
    main(__doc__, fields(PARAMETERS), run)
