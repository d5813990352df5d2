"""Reading runs: complete, typed, without repeats, or a sentence that says what is wrong."""

import json

import pytest
from synthetic_suites import METHODS, SETTINGS

from analysis.reading.runs import latest_suite, load_experiment, load_folder, load_suite
from analysis.reading.table import RunsError, observations
from colazero.store.client import experiment_of

MODEL = "smollm2-135m"


def test_a_suite_is_one_typed_row_a_cell(suites):
    table = load_suite(suites.suite(windows=False))
    assert len(table) == 1 + 3 * 5
    assert str(table["seed"].dtype) == "Int64"
    assert str(table["group_size"].dtype) == "Int64"
    assert str(table["sym"].dtype) == "boolean"
    assert str(table["perplexity"].dtype) == "float64"
    cells = table[table["kind"] == "cell"]
    assert set(cells["seed"]) == {42, 43, 44, 45, 46}
    assert cells["sym"].all()
    assert (table["error"] == "").all()
    assert table.loc[table["method"] == "unquantized", "perplexity"].tolist() == [20.0]


def test_methods_stand_in_the_order_in_which_the_suite_names_them(suites):
    """Its cells begin in another: each seed's in an order of its own."""
    named = list(METHODS)
    late = {f"{MODEL}/{named[0]}/{seed}": None for seed in range(42, 47)}
    suite = suites.suite(windows=False, **late)
    for seed in range(42, 47):
        cell = SETTINGS | {"model": MODEL, "method": named[0], "seed": seed}
        suites.run("cell", cell, {"perplexity": 23.0 + seed}, {}, suite)
    table = load_suite(suite)
    assert list(dict.fromkeys(table["method"])) == ["unquantized", *named]
    assert table["seed"].dropna().tolist() == 3 * [42, 43, 44, 45, 46]


def test_a_resolved_parameter_wins_over_the_string_that_mlflow_run_logged(suites):
    change = {f"{MODEL}/random/42": {"params": {"seq_len": "auto", "resolved.seq_len": "512"}}}
    table = load_suite(suites.suite(windows=False, **change))
    assert set(table.loc[table["kind"] == "cell", "seq_len"]) == {512}


def test_seeds_of_a_deterministic_method_are_one_observation(suites):
    table = load_suite(suites.suite(windows=False))
    observations = table.groupby("method")["observation"].nunique()
    assert observations.to_dict() == {
        "cola_zero": 5,
        "gptq_default": 1,
        "random": 5,
        "unquantized": 1,
    }


def test_seeds_that_share_one_run_are_one_observation_even_without_a_digest(suites):
    first = suites.run("cell", {"model": MODEL})
    tags = {"colazero.source_run": first, "colazero.calibration_digest": ""}
    change = {f"{MODEL}/random/{seed}": {"tags": tags} for seed in range(42, 47)}
    table = load_suite(suites.suite(windows=False, **change))
    assert table[table["method"] == "random"]["observation"].nunique() == 1


def test_a_set_that_two_of_five_seeds_drew_alike_is_two_draws(suites):
    tags = {"colazero.calibration_digest": "same"}
    change = {f"{MODEL}/random/{seed}": {"tags": tags} for seed in (42, 43)}
    table = load_suite(suites.suite(windows=False, **change))
    own = table[table["method"] == "random"]
    assert own["calibration_set"].nunique() == 4
    assert own["observation"].nunique() == 5
    assert not own["one_set"].any()


def test_replicates_of_a_seed_are_averaged_and_those_of_one_set_are_observations(suites):
    table = load_suite(suites.suite(replicates=3, windows=False))
    once = observations(table)
    assert once.groupby("method").size().to_dict() == {
        "cola_zero": 5,
        "gptq_default": 15,
        "random": 5,
        "unquantized": 1,
    }
    own = table[(table["method"] == "random") & (table["seed"] == 43)]
    row = once[(once["method"] == "random") & (once["seed"] == 43)].iloc[0]
    assert row["draws"] == len(own) == 3
    assert row["perplexity"] == pytest.approx(own["perplexity"].mean())


def test_one_set_in_one_order_is_one_draw_however_often_it_was_computed(suites):
    tags = {"colazero.calibration_digest": "same", "colazero.order_digest": "same"}
    change = {f"{MODEL}/random/{seed}": {"tags": tags} for seed in range(42, 47)}
    once = observations(load_suite(suites.suite(windows=False, **change)))
    assert (once["method"] == "random").sum() == 1


def test_a_missing_cell_is_named(suites):
    suite = suites.suite(windows=False, **{f"{MODEL}/random/44": None})
    with pytest.raises(RunsError, match=rf"incomplete: 1 of 16 .*{MODEL}/random/seed 44.*no such"):
        load_suite(suite)
    table = load_suite(suite, allow_failed=True)
    row = table[(table["method"] == "random") & (table["seed"] == 44)].iloc[0]
    assert (row["status"], row["error"]) == ("MISSING", "there is no such run")
    assert str(table["seed"].dtype) == "Int64"


@pytest.mark.parametrize("status", ["FAILED", "KILLED", "RUNNING"])
def test_a_cell_that_did_not_finish_is_named_with_its_reason(suites, status):
    suite = suites.suite(windows=False, **{f"{MODEL}/cola_zero/45": {"status": status}})
    with pytest.raises(RunsError, match=r"cola_zero/seed 45.*no luck"):
        load_suite(suite)
    failed = load_suite(suite, allow_failed=True).query("error != ''")
    assert failed["status"].tolist() == [status]
    assert failed["perplexity"].isna().all()


def test_an_attempt_that_failed_before_the_cell_finished_does_not_count(suites):
    suite = suites.suite(windows=False)
    suites.run("cell", {"model": MODEL, "method": "random", "seed": 43}, {}, {}, suite, "FAILED")
    assert len(load_suite(suite)) == 16


@pytest.mark.parametrize("value", [float("inf"), 1.797e308, float("nan")])
def test_a_perplexity_that_is_not_finite_is_an_error_of_its_cell(suites, value):
    change = {f"{MODEL}/random/42": {"metrics": {"perplexity": value}}}
    suite = suites.suite(windows=False, **change)
    with pytest.raises(RunsError, match=r"random/seed 42.*(not finite|no perplexity)"):
        load_suite(suite)
    table = load_suite(suite, allow_failed=True)
    assert (table["perplexity"].dropna() < 30).all()


def test_a_missing_baseline_is_named(suites):
    suite = suites.suite(windows=False, **{f"{MODEL}/unquantized": None})
    with pytest.raises(RunsError, match=f"{MODEL}/unquantized"):
        load_suite(suite)


def test_a_cell_that_is_there_twice_is_refused(suites):
    suite = suites.suite(windows=False)
    twice = {"model": MODEL, "method": "random", "seed": 43}
    suites.run("cell", twice, {"perplexity": 23.0}, {}, suite)
    with pytest.raises(RunsError, match=r"more than one run of .*random/seed 43"):
        load_suite(suite, allow_failed=True)


@pytest.mark.parametrize(
    ("params", "name"),
    [({"seq_len": "1024"}, "seq_len"), ({"group_size": "32"}, "group_size")],
)
def test_mixed_settings_are_refused(suites, params, name):
    suite = suites.suite(windows=False, **{f"{MODEL}/random/43": {"params": params}})
    with pytest.raises(RunsError, match=f"mixes settings: {name}"):
        load_suite(suite, allow_failed=True)


def test_the_index_of_a_device_is_no_setting(suites):
    change = {
        f"{MODEL}/{method}/{42 + i}": {"params": {"device": f"cuda:{i % 2}"}}
        for method in ("gptq_default", "random", "cola_zero")
        for i in range(5)
    }
    assert len(load_suite(suites.suite(windows=False, **change))) == 16


def test_what_is_no_suite_is_refused(suites):
    with pytest.raises(RunsError, match="suite='nothing'"):
        load_suite("nothing")
    cell = suites.run("cell", {"model": MODEL})
    with pytest.raises(RunsError, match=r"suite=.* kind 'cell'"):
        load_suite(cell)
    with pytest.raises(RunsError, match="suite=RUN_ID"):
        latest_suite([experiment_of(cell)])


def test_the_latest_suite_is_found(suites):
    suites.suite(seeds=2, windows=False)
    newest = suites.suite(seeds=2, windows=False)
    assert latest_suite([experiment_of(newest)]) == newest


def test_an_experiment_counts_a_cell_once_that_two_suites_share(suites):
    first = suites.suite(windows=False)
    table = load_suite(first).query("method == 'random'")
    suites.suite(
        seeds=2,
        windows=False,
        methods={"random": (23.0, 0.3)},
        **{
            f"{MODEL}/random/{seed}": {"tags": {"colazero.source_run": source}}
            for seed, source in zip(table["seed"], table["run_id"], strict=True)
        },
        **{f"{MODEL}/unquantized": None},
    )
    whole = load_experiment(suites.name)
    assert len(whole) == 16
    assert len(observations(whole)) == 12


def test_an_experiment_with_a_filter(suites):
    suites.suite(windows=False)
    table = load_experiment(suites.name, "params.method = 'random'")
    assert set(table["method"]) == {"random", "unquantized"}
    with pytest.raises(RunsError, match="filter='nonsense'"):
        load_experiment(suites.name, "nonsense")
    with pytest.raises(RunsError, match="holds no cell"):
        load_experiment(suites.name, "params.method = 'none'")
    with pytest.raises(RunsError, match="no experiment 'nowhere'"):
        load_experiment("nowhere")


def test_an_experiment_with_a_hole_is_refused(suites):
    suites.suite(windows=False, **{f"{MODEL}/random/44": None})
    with pytest.raises(RunsError, match="random/seed 44"):
        load_experiment(suites.name)


RESULT = {
    "model": MODEL,
    "n_calibration_samples": 128,
    "seq_len": 2048,
    "quant_bits": 4,
    "group_size": 128,
    "selection_time_sec": 3.0,
    "quant_time_sec": 60.0,
    "total_time_sec": 70.0,
    "downstream": {"arc_easy.acc": 0.5},
}


@pytest.fixture
def folder(tmp_path):
    for method, values in {"random": (5.8, 5.9), "cola_zero": (5.7, 5.75)}.items():
        for seed, value in enumerate(values, 42):
            result = RESULT | {"method": method, "seed": seed, "perplexity": value}
            (tmp_path / f"{method}_{seed}.json").write_text(json.dumps(result))
    return tmp_path


def test_a_folder_of_results(folder):
    table = load_folder(folder)
    assert sorted(table["perplexity"]) == [5.7, 5.75, 5.8, 5.9]
    assert table["downstream.arc_easy.acc"].tolist() == [0.5] * 4
    assert table["seq_len"].tolist() == [2048] * 4


def test_a_folder_with_a_hole_or_a_broken_file_is_refused(folder):
    (folder / "random_42.json").unlink()
    with pytest.raises(RunsError, match="random/seed 42"):
        load_folder(folder)
    (folder / "random_42.json").write_text('{"model": "x"}')
    with pytest.raises(RunsError, match=r"random_42.json is not a result file: KeyError"):
        load_folder(folder)
    with pytest.raises(RunsError, match="holds no cell"):
        load_folder(folder / "nothing")
