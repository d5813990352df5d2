"""Runs that differ in settings: each setting is a model of its own, nothing is lost or mixed."""

import pytest
from other_values import OTHER

from analysis.reading.looks import course_of, read_course
from analysis.reading.runs import load_experiment, load_suite, load_suites
from analysis.reading.table import RunsError, observations
from analysis.summary import Options, summarize
from colazero.settings import CELL, SETTINGS, SWEPT, RunConfig
from colazero.suite_settings import SuiteConfig

MODEL = "smollm2-135m"
FEW = {"random": (23.0, 0.3), "cola_zero": (22.0, 0.3)}


def cells(table):
    return table[table["kind"] == "cell"]


def test_a_sweep_is_a_model_a_setting(suites):
    sweep = {"quant_bits": [3, 4], "corpus": ["sotu", "c4"]}
    table = load_suite(suites.suite(sweep=sweep, methods=FEW, windows=False))
    assert set(table["model"]) == {
        f"{MODEL} [quant_bits={bits}, corpus={corpus}]"
        for bits in (3, 4)
        for corpus in sweep["corpus"]
    }
    assert set(table["base_model"]) == {MODEL}
    assert set(table["facets"]) == {"quant_bits, corpus"}
    assert cells(table).groupby("model")["quant_bits"].nunique().eq(1).all()
    assert table.groupby("model").size().eq(1 + 2 * 5).all()
    plain = table[table["method"] == "unquantized"]
    assert plain["perplexity"].tolist() == [20.0] * 4
    assert plain["run_id"].nunique() == 1
    assert (table["error"] == "").all()


@pytest.mark.parametrize("name", SWEPT)
def test_a_sweep_of_any_setting_is_read_with_its_hole(suites, name):
    """The suite lists the values as JSON, a cell logs them as text: 1.0 and "1.0" are one value."""
    default = 32 if name == "group_size" else RunConfig.model_fields[name].default  # not auto
    values, methods = [default, OTHER[name]], {"random": (23.0, 0.3)}
    hole = {f"{MODEL}/random/43 {name}={OTHER[name]}": None}
    suite = suites.suite(sweep={name: values}, methods=methods, seeds=2, windows=False, **hole)
    table = cells(load_suite(suite, allow_failed=True))
    assert table["facets"].tolist() == [name] * 4
    assert (table["status"] == "MISSING").sum() == 1
    assert table.groupby("model").size().tolist() == [2, 2]


def test_without_a_sweep_a_model_is_a_model_and_mixing_is_refused(suites):
    table = load_suite(suites.suite(windows=False))
    assert set(table["model"]) == set(table["base_model"]) == {MODEL}
    assert set(table["facets"]) == {""}
    change = {f"{MODEL}/random/43 quant_bits=3": {"params": {"seq_len": "1024", "quant_bits": 3}}}
    suite = suites.suite(sweep={"quant_bits": [3, 4]}, windows=False, **change)
    with pytest.raises(RunsError, match="mixes settings: seq_len"):
        load_suite(suite, allow_failed=True)


def test_a_hole_in_one_setting_is_named_there(suites):
    change = {
        f"{MODEL}/random/44 quant_bits=3": None,
        f"{MODEL}/random/45 quant_bits=4": {"status": "FAILED"},
    }
    suite = suites.suite(sweep={"quant_bits": [3, 4]}, methods=FEW, windows=False, **change)
    with pytest.raises(RunsError, match=r"2 of 22 .*quant_bits=3\]/random/seed 44"):
        load_suite(suite)
    table = load_suite(suite, allow_failed=True)
    missing = table[table["status"] == "MISSING"].iloc[0]
    assert (missing["quant_bits"], missing["base_model"], missing["seed"]) == (3, MODEL, 44)
    failed = table[table["status"] == "FAILED"].iloc[0]
    assert (failed["model"], failed["seed"]) == (f"{MODEL} [quant_bits=4]", 45)


def test_a_setting_without_any_run_is_missing_as_a_whole(suites):
    change = {f"{MODEL}/{m}/{seed} quant_bits=3": None for m in FEW for seed in range(42, 47)}
    suite = suites.suite(sweep={"quant_bits": [3, 4]}, methods=FEW, windows=False, **change)
    table = load_suite(suite, allow_failed=True)
    own = cells(table[table["model"] == f"{MODEL} [quant_bits=3]"])
    assert own["status"].tolist() == ["MISSING"] * 10


def test_suites_side_by_side_are_divided_by_what_differs_and_by_nothing_else(suites):
    three = suites.suite(settings={"quant_bits": "3"}, methods=FEW, windows=False)
    four = suites.suite(settings={"quant_bits": "4"}, seeds=3, windows=False)
    table = load_suites([three, four])
    assert set(table["facets"]) == {"quant_bits"}
    count = cells(table).groupby("model")["method"].value_counts().to_dict()
    assert count == {
        (f"{MODEL} [quant_bits=3]", "random"): 5,
        (f"{MODEL} [quant_bits=3]", "cola_zero"): 5,
        **{(f"{MODEL} [quant_bits=4]", method): 3 for method in ("gptq_default", *FEW)},
    }
    plain = table[table["method"] == "unquantized"]
    assert set(plain["model"]) == set(table["model"])
    assert plain["run_id"].is_unique, "each suite's own"
    assert (table["error"] == "").all(), "what a suite never had is not missing"


def test_suites_of_one_setting_are_one_table(suites):
    first = suites.suite(methods={"random": FEW["random"]}, windows=False)
    second = suites.suite(methods={"cola_zero": FEW["cola_zero"]}, windows=False)
    table = load_suites([first, second])
    assert set(table["model"]) == {MODEL}
    assert len(table) == 1 + 10
    summary = summarize(table, Options())
    assert [(p.a, p.b) for p in summary.pairs] == [("cola_zero", "random")]


def test_of_repeats_the_newest_that_finished_is_taken_once(suites):
    again = {
        f"{MODEL}/random/42": {"metrics": {"perplexity": 99.0}},
        f"{MODEL}/random/43": {"status": "FAILED"},
    }
    first = suites.suite(methods=FEW, windows=False)
    second = suites.suite(methods=FEW, windows=False, **again)
    for order in ([first, second], [second, first]):
        table = load_suites(order)
        assert len(table) == 1 + 10
        own = cells(table)[lambda rows: rows["method"] == "random"].set_index("seed")
        assert own.loc[42, "perplexity"] == 99.0
        assert own.loc[43, "suite"] == first, "the repeat failed"
        assert set(own.loc[[42, 44, 45, 46], "suite"]) == {second}
        assert (table["error"] == "").all()
    assert len(observations(load_suites([first, second]))) == 11
    assert len(load_experiment(suites.name)) == 11


def test_a_filter_takes_some_cells_and_misses_no_others(suites):
    sweep = {"quant_bits": [3, 4], "n_calibration_samples": [8, 16]}
    suite = suites.suite(sweep=sweep, windows=False, **{f"{MODEL}/random/44 x": None})
    table = load_suites([suite], "params.quant_bits = '3'")
    assert set(cells(table)["quant_bits"]) == {3}
    assert len(cells(table)) == 2 * 15
    assert (table["error"] == "").all(), "a filter selects cells; the unquantized model stays"
    assert table.loc[table["method"] == "unquantized", "perplexity"].tolist() == [20.0] * 2
    found = load_experiment(suites.name, "params.quant_bits = '3'")
    assert set(found["model"]) == {f"{MODEL} [n_calibration_samples={n}]" for n in (8, 16)}
    with pytest.raises(RunsError, match="no cell is found"):
        load_suites([suite], "params.quant_bits = '8'")
    with pytest.raises(RunsError, match="filter"):
        load_suites([suite], "nonsense")


def test_versions_and_devices_that_differ_divide_suites_too(suites):
    old = suites.suite(methods=FEW, windows=False)
    tags = {"version.torch": "2.12.0"}
    change = {f"{MODEL}/{m}/{seed}": {"tags": tags} for m in FEW for seed in range(42, 47)}
    new = suites.suite(methods=FEW, windows=False, **change)
    table = load_suites([old, new])
    assert set(table["facets"]) == {"version.torch"}
    assert set(cells(table)["model"]) == {
        f"{MODEL} [version.torch={v}]" for v in ("2.12.0", "2.13.0")
    }


def test_what_holds_by_model_divides_only_where_a_model_has_several(suites):
    group = {f"b/{m}/{seed}": {"params": {"group_size": "32"}} for m in FEW for seed in (42, 43)}
    first = suites.suite(models=("a", "b"), methods=FEW, seeds=2, windows=False, **group)
    assert set(load_suites([first, first])["model"]) == {"a", "b"}
    other = suites.suite(
        models=("a",), methods=FEW, seeds=2, windows=False, settings={"group_size": "128"}
    )
    assert set(cells(load_suites([first, other]))["model"]) == {
        "a [group_size=64]",
        "a [group_size=128]",
        "b [group_size=32]",
    }


def text(value):
    """Write a parameter as a run logs it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


RESOLVED = {"group_size": 128, "act_group_aware": True, "bos": "first", "eval_seq_len": 512}
RESOLVED |= {"device": "cpu"}
DEFAULTS = {n: text((RunConfig().model_dump() | RESOLVED)[n]) for n in SETTINGS if n not in CELL}


def test_every_parameter_has_another_value_to_test_with():
    assert OTHER.keys() == SETTINGS.keys()
    assert not [name for name, value in DEFAULTS.items() if value == text(OTHER[name])]


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_setting_keeps_suites_apart_exactly_if_it_decides_a_result(suites, name):
    few = {"methods": {"random": FEW["random"]}, "seeds": 2, "windows": False}
    takers = SETTINGS[name].quantizers
    defaults = DEFAULTS | ({"quantizer": takers[0]} if takers else {})
    plain = suites.suite(settings=defaults, **few)
    other = defaults | {name: text(OTHER[name])}
    equal_seeds = suites.suite(settings=other, **few)
    more_seeds = suites.suite(settings=other, first_seed=44, **few)
    for second, seeds in ((equal_seeds, 2), (more_seeds, 4)):
        table = load_suites([plain, second])
        if SETTINGS[name].decides:
            models = {f"{MODEL} [{name}={value[name]}]" for value in (defaults, other)}
            assert (set(table["facets"]), {m.casefold() for m in table["model"]}) == (
                {name},
                {m.casefold() for m in models},
            )
            assert len(cells(table)) == 4
            assert not cells(table)[name].isna().any()
        else:
            assert (set(table["facets"]), set(table["model"])) == ({""}, {MODEL})
            assert len(cells(table)) == seeds


def test_quantizers_are_kept_apart_by_themselves_and_by_what_they_take(suites):
    few = {"methods": {"random": FEW["random"]}, "seeds": 2, "windows": False}
    gptq = suites.suite(settings=DEFAULTS, **few)
    untaken = {"damp_percent": "0.01", "act_group_aware": "false", "group_size": "64"}
    pruned = [
        suites.suite(settings=DEFAULTS | untaken | {"quantizer": "wanda", "sparsity": s}, **few)
        for s in ("0.5", "0.6")
    ]
    assert set(load_suites([gptq, pruned[0]])["model"]) == {
        f"{MODEL} [quantizer=onepass]",
        f"{MODEL} [quantizer=wanda]",
    }
    table = load_suites([gptq, *pruned])
    assert set(table["model"]) == {
        f"{MODEL} [quantizer=onepass]",
        f"{MODEL} [quantizer=wanda, sparsity=0.5]",
        f"{MODEL} [quantizer=wanda, sparsity=0.6]",
    }
    assert table[table["method"] == "unquantized"]["model"].nunique() == 3


def test_a_suite_of_several_quantizers_is_a_model_for_each(suites):
    sweep = {"quantizer": ["onepass", "awq", "wanda"]}
    table = load_suite(suites.suite(sweep=sweep, methods=FEW, windows=False))
    assert set(table["facets"]) == {"quantizer"}
    assert cells(table).groupby("model")["quantizer"].nunique().eq(1).all()
    summary = summarize(table, Options())
    assert {pair.model for pair in summary.pairs} == set(table["model"])
    assert len(set(table["model"])) == 3


def test_models_and_methods_that_differ_are_no_settings(suites):
    few = {"settings": DEFAULTS, "seeds": 2, "windows": False}
    first = suites.suite(methods={"random": FEW["random"]}, **few)
    second = suites.suite(methods=FEW, models=("b",), **few)
    table = load_suites([first, second])
    assert (set(table["facets"]), set(table["model"])) == ({""}, {MODEL, "b"})
    assert len(cells(table)) == 2 + 4


def test_what_only_a_suite_has_decides_no_result(suites):
    few = {"methods": {"random": FEW["random"]}, "seeds": 2, "windows": False}
    own = SuiteConfig.model_fields.keys() - RunConfig.model_fields.keys()
    names = own - {"models", "methods", "seeds", "replicates"}
    both = [
        suites.suite(settings=DEFAULTS | dict.fromkeys(names, value), first_seed=first, **few)
        for value, first in (("1", 42), ("2", 44))
    ]
    table = load_suites(both)
    assert (set(table["facets"]), len(cells(table))) == ({""}, 4)


def keyed(methods=FEW, seeds=range(42, 47)):
    """Tags that give each cell the key that an equal one of another suite has too."""
    return {
        f"{MODEL}/{m}/{seed}": {"tags": {"colazero.key": f"{m}{seed}"}}
        for m in methods
        for seed in seeds
    }


def finish(suites, *run_ids):
    for run_id in run_ids:
        suites.client.set_terminated(run_id)


def test_seeds_of_two_suites_put_together_are_a_further_look(suites):
    first = suites.suite(methods=FEW, windows=False, **keyed())
    later = keyed(seeds=range(47, 52))
    second = suites.suite(methods=FEW, first_seed=47, windows=False, **later)
    finish(suites, first, second)
    table = load_suites([first, second])
    assert sorted(set(cells(table)["seed"])) == list(range(42, 52))
    assert (table["error"] == "").all()
    course = read_course([first, second], table)
    assert [len(seen) for seen in course.looks] == [10, 10, 20]
    assert course.maxima == {MODEL: None}
    assert summarize(table, Options(), course).looks


def test_a_filter_and_a_whole_experiment_count_the_looks_of_their_suites(suites):
    first = suites.suite(methods=FEW, windows=False, **keyed())
    second = suites.suite(methods=FEW, first_seed=47, windows=False, **keyed(seeds=range(47, 52)))
    finish(suites, first, second)
    whole = load_experiment(suites.name, "params.quant_bits = '4'")
    course = course_of(whole)
    assert [len(seen) for seen in course.looks] == [10, 10, 20]
    (pair,) = summarize(whole, Options(), course).pairs
    assert pair.decided_by == "seeds at any time"


def test_suites_of_different_settings_are_one_look_each(suites):
    ids = [
        suites.suite(methods=FEW, windows=False, settings={"quant_bits": bits}, **{
            key: {"tags": {"colazero.key": f"{bits}{one['tags']['colazero.key']}"}}
            for key, one in keyed().items()
        })
        for bits in ("3", "4")
    ]  # fmt: skip
    finish(suites, *ids)
    table = load_suites(ids)
    summary = summarize(table, Options(), read_course(ids, table))
    assert summary.looks == []
    assert {p.verdict for p in summary.pairs} == {"different"}
