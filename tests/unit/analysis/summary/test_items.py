"""Models on the same downstream items: read from the runs, matched item by item, adjusted."""

import gzip
import json
from pathlib import Path

import pytest

from analysis.reading.artifacts import read_items
from analysis.reading.runs import load_suite
from analysis.report.tables import item_table
from analysis.report.write import contents
from analysis.stats.comparison import mcnemar
from analysis.stats.verdicts import holm
from analysis.summary import Options, summarize
from analysis.summary.items import compare, item_pairs

MODEL = "smollm2-135m"
METHODS = {"gptq_default": (24.0, 0.0), "random": (23.4, 0.35)}
RIGHT = {
    "unquantized": [1, 1, 1, 1, 1, 1, 1, 1, 0, 0] * 6,
    "gptq_default": [1, 1, 1, 1, 0, 0, 0, 1, 1, 0] * 6,
    "random": [0, 0, 1, 1, 0, 0, 0, 1, 1, 0] * 6,
}


def log_items(suites, run_id, right, **change):
    rows = [
        {"task": task, "doc_id": i, "doc_hash": f"{task}{i}", "target": 0, "response": [0.0, -1.0]}
        | ({"acc": float(r), "acc_norm": float(1 - r)} if task == "norm" else {"acc": float(r)})
        | change
        for task in ("norm", "plain")
        for i, r in enumerate(right)
    ]
    write_rows(suites, run_id, rows)


def write_rows(suites, run_id, rows):
    folder = Path(suites.client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    (folder / "evaluation").mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / "evaluation/downstream.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def summary(suites):
    """A suite whose first seeds have downstream items; the other seeds have none."""
    with_scores = {"metrics": {"downstream.plain.acc": 0.5}}
    change = {f"{MODEL}/{name}/42": with_scores for name in METHODS}
    parent = suites.suite(methods=METHODS, **change | {f"{MODEL}/unquantized": with_scores})
    cells = load_suite(parent)
    for name, right in RIGHT.items():
        run_id = cells[cells["method"] == name].sort_values("seed").iloc[0]["run_id"]
        log_items(suites, run_id, right)
    return summarize(cells, Options())


def test_every_two_models_are_compared_on_each_task(summary):
    pairs = item_pairs(summary)
    assert {(p.a, p.b, p.task, p.metric) for p in pairs} == {
        (a, b, task, metric)
        for a, b in (
            ("gptq_default", "unquantized"),
            ("random", "unquantized"),
            ("random", "gptq_default"),
        )
        for task, metric in (("norm", "acc_norm"), ("plain", "acc"))
    }
    for pair in pairs:
        right = [[1 - r if pair.task == "norm" else r for r in RIGHT[m]] for m in (pair.a, pair.b)]
        assert pair.result == mcnemar(*right)
    assert [p.p_adjusted for p in pairs] == holm([p.result.p_value for p in pairs])


def test_each_filter_of_the_answers_is_compared(suites):
    """As gsm8k has it: a row an item and filter, each with a metric of its own name."""
    right = {"strict-match": ([1, 0, 1, 0], [0, 0, 1, 1]), "other": ([1, 1, 1, 0], [1, 0, 0, 0])}
    runs = []
    for which in (0, 1):
        run_id = suites.run("evaluate", {})
        rows = [
            {"task": "gsm8k", "doc_id": i, "doc_hash": f"h{i}", f"exact_match.{name}": float(r)}
            for name, answers in right.items()
            for i, r in enumerate(answers[which])
        ]
        write_rows(suites, run_id, rows)
        runs.append(read_items(run_id))
    pairs = compare(*runs)
    assert [(p.metric, p.result) for p in pairs] == [
        (f"exact_match.{name}", mcnemar(*answers)) for name, answers in right.items()
    ]
    assert compare(runs[0], runs[1][:-1])[0].metric == "exact_match.strict-match"
    assert len(compare(runs[0], runs[1][:-1])) == 1, "an item that one run has not"


def test_the_report_shows_them(summary):
    files = contents(summary, "title")
    rows = json.loads(files["suite.json"])["downstream_items"]
    assert len(rows) == 6
    assert rows[0]["result"]["n_items"] == 60
    assert "p (McNemar)" in files["table.md"]
    assert "Downstream tasks, item by item" in files["report.html"]
    table = item_table(item_pairs(summary))
    assert len(table.header) == len(table.rows[0])


def test_a_suite_without_items_says_nothing_of_them(demo):
    assert item_pairs(demo) == []
    files = contents(demo, "title")
    assert "McNemar" not in files["report.html"]
    assert "McNemar" not in files["table.md"]


def test_other_items_are_not_compared(suites):
    first, second = suites.run("evaluate", {}), suites.run("evaluate", {})
    log_items(suites, first, [1, 0, 1])
    log_items(suites, second, [1, 0, 1], doc_hash="another text")
    assert compare(read_items(first), read_items(second)) == []
    assert read_items(suites.run("evaluate", {})) is None
