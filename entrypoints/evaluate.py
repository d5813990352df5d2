"""Evaluate any model: `python -m entrypoints.evaluate --preset=demo --model=runs:/ID`."""

from __future__ import annotations

from colazero.settings import taken_by
from entrypoints._command_line import fields, main, settled

PARAMETERS = taken_by("evaluation")
EVALUATION = tuple(name for name in PARAMETERS if name not in ("model", "device"))
"""What is taken over from a run whose model is evaluated."""


def run(given: dict[str, str]) -> int:
    from colazero.settings import RunConfig
    from colazero.suite_settings import parse

    if given.get("seq_len", "auto") != "auto" and given.get("eval_seq_len", "auto") == "auto":
        given = given | {"eval_seq_len": given["seq_len"]}  # nothing is calibrated here
    config = parse(RunConfig, given)
    from colazero import devices

    device = devices.take(config.device)
    from colazero import models, pipeline, preconditions, tracking
    from colazero.suite.progress import stage_bar
    from colazero.tracking import fetching, names, pages

    path = config.model
    if path.startswith("runs:/"):
        tracking.connect()
        config = parse(RunConfig, settled(given, fetching.settings(path, EVALUATION)))
        config = config.model_copy(update={"device": device})
        preconditions.check(config, [], [])
        path = str(fetching.fetch_artifacts(path, "model"))
    else:
        config = config.model_copy(update={"device": device})
        preconditions.check(config, [], [path])
        tracking.connect()
    config = config.model_copy(update={"eval_seq_len": config.evaluated_len})
    model = models.fetch(path)
    preconditions.check_evaluation(config, model)
    name = names.joined("evaluate", models.label(config.model))
    with tracking.run(name, "evaluate") as run_id:
        tracking.set_tags(devices.tags(device))
        tracking.log_params({key: tracking.as_text(getattr(config, key)) for key in PARAMETERS})
        evaluation = pipeline.evaluate(config, model, model.path, stage_bar(name)("evaluate"))
        metrics = tracking.log_evaluation(evaluation)
        tracking.log_datasets(None, None, *evaluation.perplexities)
    for key, value in metrics.items():
        print(f"{key}: {value:.6g}")
    print(pages.where(run_id))
    return 0


if __name__ == "__main__":
    main(__doc__, fields(PARAMETERS), run)
