"""What one setting holds never changes another's numbers."""

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from analysis.reading.artifacts import read
from analysis.reading.looks import read_course
from analysis.reading.runs import load_suite, load_suites
from analysis.report.answer import reason
from analysis.report.facts import plain
from analysis.summary import Options, summarize

MODEL = "smollm2-135m"
FEW = {"random": (23.1, 0.35), "cola_zero": (23.0, 0.30)}


def keyed(methods, seeds, prefix):
    return {
        f"{MODEL}/{m}/{seed}": {"tags": {"colazero.key": f"{prefix}-{m}-{seed}"}}
        for m in methods
        for seed in range(42, 42 + seeds)
    }


def numbers(suites, model):
    """Every number of a model (in one setting) in the summary of suites, its name left out."""
    ids = list(suites)
    cells = load_suite(*ids) if len(ids) == 1 else load_suites(ids)
    summary = summarize(cells, Options(), read_course(ids, cells))
    (name,) = (m for m in summary.models if m.endswith(model))
    parts = {
        "methods": [replace(m, model="") for m in summary.methods if m.model == name],
        "pairs": [replace(p, model="") for p in summary.pairs if p.model == name],
        "metrics": [replace(s, model="") for s in summary.metrics if s.model == name],
        "looks": [
            replace(t, pairs=tuple(replace(p, model="") for p in t.pairs))
            for t in summary.looks
            if t.pair.model == name
        ],
    }
    found = {part: [asdict(one) for one in own] for part, own in parts.items()}
    found["budgets"] = {m: asdict(b) for (m, of), b in summary.budgets.items() if of == name}
    found["texts"] = [asdict(t) for of, t in summary.texts.items() if of == name]
    found["unquantized"] = summary.unquantized[name]
    return plain(found)


def same(a, b, where=""):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{k}]")
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b, where)
    else:
        assert a == b, where


def settled(suites, run_id, looks):
    for name, value in (("until", "settled"), ("looks", looks)):
        suites.client.log_param(run_id, name, value)
    suites.client.set_tag(run_id, "colazero.looks", looks)


BITS = {"quant_bits": "3"}
OTHERS = [
    ("[eval_corpora=sotu]", {"models": ("tiny",), "settings": {"eval_corpora": "mine"}}),
    ("[quant_bits=4, eval_corpora=sotu]", {"settings": BITS | {"eval_corpora": "mine"}}),
    ("[evaluation_text=this]", {"text": "other"}),
    ("[quant_bits=4]", {"settings": BITS}),  # without divergence
    ("[quant_bits=4]", {"settings": BITS, "windows": False}),
    ("[quant_bits=4]", {"settings": BITS, "methods": {"random": (23.0, 0.3)}}),
    ("[quant_bits=4]", {"settings": BITS, f"{MODEL}/random/44": {"status": "FAILED"}}),
]
"""How the first setting is named beside a second suite, and what is different in that one."""


@pytest.mark.parametrize("plan", ["fixed", "settled", "without the primary method"])
def test_a_setting_beside_others_has_the_numbers_that_it_has_alone(suites, plan):
    methods = FEW | {"gptq_default": (24.0, 0.0)}
    if plan == "without the primary method":
        methods = {"zipcal": (23.4, 0.4), "random": (23.1, 0.35)}
    kind = {"methods": methods, "seeds": 4, "windows": "kl", "text": "this"}
    kind["replicates"] = 2 if plan == "fixed" else 1
    first = suites.suite(**kind, **keyed(methods, 4, "first"))
    if plan != "fixed":
        settled(suites, first, "2,4")
    suites.client.set_terminated(first, "FINISHED")
    alone = numbers([first], MODEL)
    assert alone["pairs"][0]["text"] is not None
    assert bool(alone["looks"]) == (plan != "fixed")
    for k, (name, other) in enumerate(OTHERS if plan == "fixed" else OTHERS[1:6:2]):
        own = keyed(FEW, 3, str(k)) | {"methods": FEW, "seeds": 3, "text": "this"} | other
        second = suites.suite(**own)
        suites.client.set_terminated(second, "FINISHED")
        same(alone, numbers([first, second], name), str(other))


def test_a_suite_that_began_later_is_no_look_at_an_earlier_one(suites):
    """It took three seeds over, and ended before the suite that the first stands beside."""
    first = suites.suite(methods=FEW, **keyed(FEW, 5, "first"))
    suites.client.set_terminated(first, "FINISHED")
    alone = numbers([first], MODEL)
    later = suites.suite(methods=FEW, seeds=3, **keyed(FEW, 3, "first"))
    suites.client.set_terminated(later, "FINISHED")
    beside = suites.suite(methods=FEW, settings=BITS, **keyed(FEW, 5, "beside"))
    suites.client.set_terminated(beside, "FINISHED")
    same(alone, numbers([first, beside], "[quant_bits=4]"))


def test_methods_on_other_windows_are_not_compared_and_take_nothing_from_the_others(suites):
    """The corpus has its old name and other text, and nothing but the windows tells."""
    methods = FEW | {"gptq_default": (24.0, 0.0)}
    suite = suites.suite(methods=methods, seeds=4, windows=True)
    cells = load_suite(suite)
    before = summarize(cells, Options())
    own = cells[(cells["method"] == "gptq_default") & (cells["source_run"] == "")]
    for run in own["run_id"]:
        file = read(run, "evaluation/windows_sotu.parquet")
        table = pd.read_parquet(file)
        table.assign(start=table["start"] + 7).to_parquet(file)
    after = summarize(cells, Options())
    kept, lost = (pair for pair in after.pairs if pair.family == "primary")
    assert (kept.b, lost.b) == ("random", "gptq_default")
    assert kept == next(p for p in before.pairs if p.b == "random")
    assert (lost.verdict, lost.percent, lost.text) == ("undefined", None, None)
    assert "gptq_default was evaluated on other text" in reason(lost)
