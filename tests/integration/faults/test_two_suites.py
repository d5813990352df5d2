"""Two suites at once on a new store do every cell once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import soak


def test_two_suites_at_once_on_a_new_store_do_everything_once(
    tiny_llama: Path, corpus_file: Path, tmp_path: Path
) -> None:
    arguments = soak.command(str(tiny_llama), str(corpus_file), workers=1)
    both = [soak.start(arguments, tmp_path) for _ in range(2)]
    assert [suite.wait() for suite in both] == [0, 0], soak.log_of(tmp_path)
    runs = soak.all_runs(tmp_path)
    newest, other = (r for r in runs if r.data.tags.get("colazero.kind") == "suite")
    newer = newest.info.run_id
    older = [r for r in runs if newer not in (r.info.run_id, r.data.tags.get("mlflow.parentRunId"))]
    assert soak.faults(runs, soak.digests(older)) == []
    finished = Counter(
        (run.data.tags["mlflow.parentRunId"], run.info.run_name)
        for run in runs
        if "mlflow.parentRunId" in run.data.tags and run.info.status == "FINISHED"
    )
    assert len(finished) == 2 * (len(soak.METHODS) * len(soak.SEEDS) + 1)
    assert set(finished.values()) == {1}
    assert {parent for parent, _ in finished} == {newest.info.run_id, other.info.run_id}
