"""Configuration: who wins, what the presets promise, what is refused and how, the canonical key."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from other_values import OTHER

from colazero.errors import UserError
from colazero.settings import QUANTIZERS, SETTINGS, Common, RunConfig, canonical_key
from colazero.suite_settings import SuiteConfig, parse, preset_names, refuse_untaken

LLAMA_7B = "meta-llama/Llama-2-7b-hf"
ALL_METHODS = ("gptq_default", "random", "cola_zero")


def test_what_is_given_wins_over_the_preset_and_the_preset_over_the_default() -> None:
    assert RunConfig().seq_len == 2048
    assert parse(RunConfig, {"preset": "demo"}).seq_len == 512
    assert parse(RunConfig, {"preset": "demo", "seq_len": "64"}).seq_len == 64
    assert parse(RunConfig, {"preset": "demo", "seq_len": "auto"}).seq_len == 512
    assert parse(SuiteConfig, {"preset": "demo", "seq_len": "auto"}).seq_len == (512,)
    assert parse(SuiteConfig, {"preset": "demo"}).damp_percent == SuiteConfig().damp_percent


def test_a_single_run_takes_the_first_model_and_seed_of_the_preset() -> None:
    config = parse(RunConfig, {"preset": "validation"})
    assert (config.model, config.seed, config.seq_len) == (LLAMA_7B, 42, 2048)


@pytest.mark.parametrize(
    ("given", "model", "windows"),
    [
        ({}, "smollm2-135m", 8),
        ({"model": "auto"}, "smollm2-135m", 8),
        ({"seed": "43"}, "smollm2-135m", 8),
        ({"model": LLAMA_7B, "seed": "43"}, LLAMA_7B, 128),
        ({"model": "a/b", "preset": "demo"}, "a/b", 8),
    ],
)
def test_preset_auto_is_full_exactly_when_a_model_is_named(
    given: dict[str, str], model: str, windows: int
) -> None:
    config = parse(RunConfig, given)
    assert (config.model, config.n_calibration_samples) == (model, windows)


def test_preset_auto_of_a_suite_looks_at_models() -> None:
    assert parse(SuiteConfig, {}).corpus == ("sotu",)
    assert parse(SuiteConfig, {"models": "a/b,c/d"}).corpus == ("wikitext2",)


def test_demo_is_what_the_readme_says() -> None:
    demo = parse(SuiteConfig, {"preset": "demo"})
    assert demo.models == ("smollm2-135m",)
    assert demo.methods == ALL_METHODS
    assert demo.seeds == (42, 43, 44, 45, 46)
    (one,) = demo.settings()
    assert (one.corpus, one.quant_bits, one.device) == ("sotu", 4, "auto")
    assert one.n_calibration_samples * one.seq_len >= 8 * 512
    assert one.eval_windows == "all" or one.eval_windows * one.seq_len >= 16 * 512
    assert len(demo.cells()) == 15
    assert demo.workers == 2


@pytest.mark.parametrize(
    ("preset", "models", "methods", "seeds"),
    [
        ("quick", (LLAMA_7B,), ("random", "cola_zero"), (42, 43)),
        ("validation", (LLAMA_7B,), ALL_METHODS, (42, 43, 44)),
        (
            "full",
            (LLAMA_7B, "meta-llama/Llama-2-13b-hf", "facebook/opt-6.7b"),
            ALL_METHODS,
            (42, 43, 44, 45, 46),
        ),
    ],
)
def test_the_large_presets_share_the_missions_settings(
    preset: str, models: tuple[str, ...], methods: tuple[str, ...], seeds: tuple[int, ...]
) -> None:
    config = parse(SuiteConfig, {"preset": preset})
    assert (config.models, config.methods, config.seeds) == (models, methods, seeds)
    (one,) = config.settings()
    assert (one.n_calibration_samples, one.seq_len) == (128, 2048)
    assert (one.quant_bits, one.group_size) == (4, "auto")  # auto is 128 for all of them
    assert (one.corpus, one.eval_corpora) == ("wikitext2", ("wikitext2",))
    assert config.do_downstream is False


def test_published_has_the_papers_settings() -> None:
    config = parse(SuiteConfig, {"preset": "published"})
    assert (config.damp_percent, config.desc_act, config.act_group_aware) == (0.01, False, False)
    (one,) = config.settings()
    assert (one.corpus, one.n_calibration_samples, one.seq_len) == ("c4", 128, 2048)
    assert (config.methods, config.eval_corpora) == (("random",), ("wikitext2",))
    assert (one.quant_bits, one.group_size) == (4, 128)


def test_every_preset_that_comes_along_is_valid() -> None:
    assert preset_names() == ["demo", "full", "published", "quick", "study", "validation"]
    for name in preset_names():
        parse(SuiteConfig, {"preset": name})


def test_a_yaml_file_of_ones_own_is_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("models: a/b\nmethods: [random]\nseeds: 7-9\nseq_len: 128\ndesc_act: true\n")
    suite = parse(SuiteConfig, {"preset": str(path), "n_calibration_samples": "3"})
    assert (suite.models, suite.methods, suite.seeds) == (("a/b",), ("random",), (7, 8, 9))
    assert (suite.seq_len, suite.desc_act, suite.n_calibration_samples) == ((128,), True, (3,))
    single = parse(RunConfig, {"preset": str(path), "method": "gptq_default"})
    assert (single.model, single.seed, single.method) == ("a/b", 7, "gptq_default")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["does not exist"]),
        ("- a\n- b\n", ["name: value"]),
        ("", ["name: value"]),
        ("models: [a\n", ["cannot be read"]),
        ("sequence_len: 3\n", ["'sequence_len'", "Did you mean 'seq_len'?"]),
        ("seq_len: 3\n", ["seq_len=3", "16"]),
        ("seq_len:\n", ["seq_len=None", "whole number"]),
        ("seeds: []\n", ["seeds=[]", "empty"]),
        ("seeds: true\n", ["seeds=True", "seeds, as in 42,43"]),
        ("seq_len: [128, true]\n", ["seq_len=[128, True]", "tokens per calibration window"]),
        ("damp_percent: false\n", ["damp_percent=False"]),
    ],
)
def test_a_bad_preset_file_is_told_in_a_sentence(
    tmp_path: Path, content: str | None, words: list[str]
) -> None:
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as caught:
        parse(SuiteConfig, {"preset": str(path)})
    for word in words:
        assert word in str(caught.value)


BAD: list[tuple[type[Common], str, str, list[str]]] = [
    (RunConfig, "preset", "demmo", ["'demmo'", "Did you mean 'demo'?", "full, published"]),
    (RunConfig, "sed", "1", ["'sed'", "Did you mean 'seed'?"]),
    (RunConfig, "models", "a/b", ["'models'", "Did you mean 'model'?"]),
    (SuiteConfig, "method", "random", ["'method'", "Did you mean 'methods'?"]),
    (RunConfig, "n_calibration_samples", "0", ["'0'", "of at least 1"]),
    (RunConfig, "n_calibration_samples", "many", ["'many'", "whole number"]),
    (RunConfig, "n_calibration_samples", "1.5", ["'1.5'", "whole number"]),
    (RunConfig, "seq_len", "15", ["'15'", "of at least 16"]),
    (RunConfig, "seq_len", "", ["''", "whole number"]),
    (RunConfig, "exact_documents", "99", ["'99'", "of at least 100"]),
    (RunConfig, "document_tokens", "1", ["'1'", "of at least 2"]),
    (RunConfig, "bos", "sometimes", ["'sometimes'", "auto, always, first or never"]),
    (RunConfig, "proxy_model", "", ["''", "a word"]),
    (RunConfig, "quant_bits", "5", ["'5'", "2, 3, 4 or 8"]),
    (RunConfig, "quant_bits", "four", ["'four'", "2, 3, 4 or 8"]),
    (RunConfig, "group_size", "8", ["'8'", "auto", "at least 16"]),
    (RunConfig, "group_size", "-2", ["'-2'", "auto", "at least 16"]),
    (RunConfig, "group_size", "big", ["'big'", "auto", "whole number"]),
    (RunConfig, "damp_percent", "0", ["'0'", "above 0"]),
    (RunConfig, "sparsity", "0", ["'0'", "above 0"]),
    (RunConfig, "sparsity", "1", ["'1'", "below 1"]),
    (RunConfig, "pattern", "4:8", ["'4:8'", "none or 2:4"]),
    (RunConfig, "damp_percent", "1", ["'1'", "below 1"]),
    (RunConfig, "damp_percent", "nan", ["'nan'", "below 1"]),
    (RunConfig, "damp_percent", "-inf", ["'-inf'", "above 0"]),
    (RunConfig, "damp_percent", "much", ["'much'", "number"]),
    (RunConfig, "desc_act", "maybe", ["'maybe'", "true or false"]),
    (RunConfig, "sym", "2", ["'2'", "true or false"]),
    (RunConfig, "act_group_aware", "perhaps", ["'perhaps'", "auto, true or false"]),
    (RunConfig, "do_downstream", "x", ["'x'", "true or false"]),
    (RunConfig, "eval_windows", "0", ["'0'", "all or a whole number of at least 1"]),
    (RunConfig, "eval_seq_len", "8", ["'8'", "auto or a whole number of at least 16"]),
    (RunConfig, "eval_windows", "some", ["'some'", "all or a whole number of at least 1"]),
    (RunConfig, "eval_corpora", "", ["''", "empty"]),
    (RunConfig, "eval_corpora", "sotu,", ["'sotu,'", "empty item"]),
    (RunConfig, "eval_corpora", "c4,c4", ["'c4,c4'", "named twice: c4"]),
    (RunConfig, "downstream_tasks", "piqa, piqa", ["'piqa, piqa'", "named twice: piqa"]),
    (RunConfig, "quantizer", "", ["''", "a word"]),
    (SuiteConfig, "downstream_seeds", "some", ["'some'", "first or all"]),
    (SuiteConfig, "controls", "rtm", ["'rtm'", "rtn"]),
    (SuiteConfig, "primary", "radnom", ["'radnom'", "gptq_default, random, cola_zero, or auto"]),
    (SuiteConfig, "baseline", "zipcal", ["'zipcal'", "methods of the suite"]),
    (SuiteConfig, "quant_bits", "3,5", ["'3,5'", "2, 3, 4 or 8"]),
    (SuiteConfig, "quant_bits", "3,3", ["'3,3'", "named twice: 3"]),
    (SuiteConfig, "group_size", "64,8", ["'64,8'", "auto", "at least 16"]),
    (SuiteConfig, "group_size", "auto,64", ["auto,64", "of several name each"]),
    (SuiteConfig, "n_calibration_samples", "8,", ["'8,'", "whole number"]),
    (SuiteConfig, "seq_len", "512,15", ["'512,15'", "of at least 16"]),
    (SuiteConfig, "corpus", "", ["''", "empty"]),
    (SuiteConfig, "corpus", "sotu,c4,sotu", ["named twice: sotu"]),
    (SuiteConfig, "chat", "sometimes", ["'sometimes'", "template"]),
    (RunConfig, "chat", "none", ["'none'", "plain"]),
    (RunConfig, "windows", "documents", ["'documents'", "stream"]),
    (RunConfig, "downstream_chat", "sometimes", ["'sometimes'", "downstream_chat"]),
    (RunConfig, "eval_on", "answer", ["'answer'", "answers"]),
    (RunConfig, "chat_template_kwargs", "{enable_thinking: false}", ["JSON object"]),
    (RunConfig, "chat_template_kwargs", "[1]", ["JSON object", "enable_thinking"]),
    (SuiteConfig, "until", "soon", ["'soon'", "seeds or settled"]),
    (SuiteConfig, "looks", "1,3", ["'1,3'", "of at least 2"]),
    (SuiteConfig, "budget_hours", "0", ["'0'", "none or a number above 0"]),
    (SuiteConfig, "budget_hours", "long", ["'long'", "none or a number above 0"]),
    (RunConfig, "save_model", "yes", ["'yes'", "artifact, local or none"]),
    (RunConfig, "device", "gpu", ["'gpu'", "auto, cpu, cuda or cuda:N", "called cuda"]),
    (RunConfig, "device", "cuda:", ["'cuda:'", "auto, cpu, cuda or cuda:N"]),
    (RunConfig, "model", "", ["''", "a word"]),
    (RunConfig, "corpus", "", ["''", "a word"]),
    (RunConfig, "method", "", ["''", "a word"]),
    (RunConfig, "seed", "1.5", ["'1.5'", "whole number"]),
    (RunConfig, "seed", "x", ["'x'", "whole number"]),
    (RunConfig, "seed", "42-46", ["'42-46'", "one whole number", "seeds=42-46"]),
    (RunConfig, "seed", "1,2", ["'1,2'", "one whole number"]),
    (RunConfig, "seed", "-1", ["'-1'", "of at least 0"]),
    (RunConfig, "seed", str(2**32), [f"'{2**32}'", f"below {2**32:,}"]),
    (SuiteConfig, "executor", "slurm", ["'slurm'", "local or ray"]),
    (SuiteConfig, "workers", "-1", ["'-1'", "of at least 0"]),
    (SuiteConfig, "ray_address", "", ["''", "a word"]),
    (SuiteConfig, "cpus_per_cell", "0", ["'0'", "above 0"]),
    (SuiteConfig, "cell_time_limit", "0", ["'0'", "above 0"]),
    (SuiteConfig, "system_metrics", "some", ["'some'", "true or false"]),
    (SuiteConfig, "plan", "maybe", ["'maybe'", "true or false"]),
    (SuiteConfig, "models", "", ["''", "empty"]),
    (SuiteConfig, "models", "a/b,,c/d", ["'a/b,,c/d'", "empty item"]),
    (SuiteConfig, "methods", "random,random", ["'random,random'", "named twice: random"]),
    (SuiteConfig, "methods", ",", ["','", "empty"]),
    (SuiteConfig, "corpus_share", "0", ["'0'", "above 0"]),
    (RunConfig, "corpus_share", "1.1", ["'1.1'", "at most 1"]),
    (RunConfig, "position_weight", "-1", ["'-1'", "of at least 0"]),
    (SuiteConfig, "position_weight", "1,inf", ["'1,inf'", "at most 1,000,000"]),
    (RunConfig, "replicate", "0", ["'0'", "of at least 1"]),
    (SuiteConfig, "replicates", "0", ["'0'", "of at least 1"]),
    (SuiteConfig, "seeds", "", ["''", "empty"]),
    (SuiteConfig, "seeds", "42,x", ["'42,x'", "'x'", "42-46"]),
    (SuiteConfig, "seeds", "42,1.5", ["'42,1.5'", "'1.5'", "whole number"]),
    (SuiteConfig, "seeds", "-3", ["'-3'", "at least 0"]),
    (SuiteConfig, "seeds", "46-42", ["'46-42'", "backwards"]),
    (SuiteConfig, "seeds", "0-99999", ["'0-99999'", "10,000"]),
    (SuiteConfig, "seeds", "42,042", ["'42,042'", "named twice: 42"]),
    (SuiteConfig, "seeds", "42-44,43", ["'42-44,43'", "named twice: 43"]),
    (SuiteConfig, "seeds", str(2**32), [f"'{2**32}'", f"below {2**32:,}"]),
]


@pytest.mark.parametrize(
    ("kind", "name", "value", "words"), BAD, ids=[f"{b[1]}={b[2]}" for b in BAD]
)
def test_a_bad_value_is_named_with_what_is_allowed(
    kind: type[Common], name: str, value: str, words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        parse(kind, {"preset": "demo"} | {name: value})
    message = str(caught.value)
    assert message.startswith((f"{name}=", "unknown "))
    assert "\n" not in message
    for word in words:
        assert word in message


def test_every_field_has_a_bad_value_in_the_table() -> None:
    assert {*RunConfig.model_fields, *SuiteConfig.model_fields} == {
        name for _, name, _, _ in BAD
    } - {
        "preset",
        "sed",
    }


def test_settings_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(UserError, match=r"act_group_aware=true.*desc_act=false"):
        parse(RunConfig, {"desc_act": "true", "act_group_aware": "true"})
    parse(RunConfig, {"desc_act": "true", "act_group_aware": "false"})
    parse(RunConfig, {"desc_act": "true"})


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("42", (42,)), ("42,43", (42, 43)), ("42-44", (42, 43, 44)), ("1, 5-6,3", (1, 5, 6, 3))],
)
def test_seeds_are_lists_and_ranges(text: str, seeds: tuple[int, ...]) -> None:
    assert parse(SuiteConfig, {"seeds": text}).seeds == seeds


def test_cells_cover_the_grid_once_and_in_order() -> None:
    given = {"preset": "demo", "models": "a/b,c/d", "methods": "random,cola_zero", "seeds": "1,2"}
    given |= {"replicates": "3", "damp_percent": "0.1"}
    cells = parse(SuiteConfig, given).cells()
    assert [(c.model, c.method, c.seed, c.replicate) for c in cells] == [
        (model, method, seed, replicate)
        for model in ("a/b", "c/d")
        for method in ("random", "cola_zero")
        for seed in (1, 2)
        for replicate in (1, 2, 3)
    ]
    assert {(c.damp_percent, c.seq_len) for c in cells} == {(0.1, 512)}


@pytest.mark.parametrize("name", RunConfig.model_fields)
def test_the_key_changes_with_each_field(name: str) -> None:
    plain = taking(name)
    assert canonical_key(RunConfig(**plain)) != canonical_key(
        RunConfig(**plain | {name: OTHER[name]})
    )


def taking(name: str) -> dict[str, Any]:
    """Return settings with a quantizer that takes a setting."""
    takers = SETTINGS[name].quantizers
    return {"quantizer": takers[0]} if takers else {}


UNTAKEN = [
    (name, one.name)
    for name in QUANTIZERS
    for one in SETTINGS.values()
    if one.quantizers and name not in one.quantizers
]


@pytest.mark.parametrize(("quantizer", "name"), UNTAKEN)
def test_a_setting_that_the_quantizer_does_not_take_is_refused_and_changes_nothing(
    quantizer: str, name: str
) -> None:
    if (quantizer, name) != ("awq", "quant_bits"):
        same = RunConfig(quantizer=quantizer)
        assert canonical_key(same) == canonical_key(same.model_copy(update={name: OTHER[name]}))
    given = {name: str(OTHER[name])}
    with pytest.raises(UserError) as caught:
        refuse_untaken(given, [quantizer])
    assert f"{name}={given[name]!r}: quantizer={quantizer}" in str(caught.value)
    assert all(taker in str(caught.value) for taker in SETTINGS[name].quantizers)
    refuse_untaken(given, [quantizer, SETTINGS[name].quantizers[-1]])
    refuse_untaken({name: "auto"}, [quantizer])
    refuse_untaken(given, ["mine"])


def test_a_suite_sweeps_no_setting_that_one_of_its_quantizers_does_not_take() -> None:
    both = {"preset": "demo", "quantizer": "onepass,wanda"}
    cells = parse(SuiteConfig, both).cells()
    assert len(cells) == len(set(map(canonical_key, cells))) == 2 * 15
    with pytest.raises(UserError, match="several values of quant_bits, which quantizer=wanda"):
        parse(SuiteConfig, both | {"quant_bits": "3,4"})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"quantizer": "awq", "quant_bits": "3"}, "quant_bits=3: quantizer=awq has 4 bits only"),
        ({"quantizer": "wanda", "pattern": "2:4", "sparsity": "0.6"}, "sparsity=0.6: pattern=2:4"),
    ],
)
@pytest.mark.parametrize("kind", [RunConfig, SuiteConfig])
def test_settings_that_contradict_each_other_are_refused(
    kind: type[Common], given: dict[str, str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        parse(kind, {"preset": "demo"} | given)


def test_the_key_changes_with_what_decides_the_result_beside_the_parameters() -> None:
    keys = {
        canonical_key(RunConfig()),
        canonical_key(RunConfig(), revision="a"),
        canonical_key(RunConfig(), revision="b"),
        canonical_key(RunConfig(), version="a"),
    }
    assert len(keys) == 4


def test_the_key_ignores_which_of_several_devices_computed() -> None:
    on = [canonical_key(RunConfig(device=device)) for device in ("cuda:0", "cuda:1", "cuda", "cpu")]
    assert on[0] == on[1] == on[2] != on[3]


def test_the_key_is_the_same_in_another_process() -> None:
    code = (
        "from colazero.settings import RunConfig, canonical_key\n"
        "print(canonical_key(RunConfig(seed=7, group_size=64), b='2', a='1'))"
    )
    here = canonical_key(RunConfig(group_size=64, seed=7), a="1", b="2")
    for hash_seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert there.stdout.strip() == here


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().seed = 3  # type: ignore[misc]


def test_downstream_tasks_run_for_the_first_seed_alone_unless_asked_for_all() -> None:
    config = SuiteConfig(do_downstream=True, seeds="7,8", methods="random,cola_zero")
    assert [c.do_downstream for c in config.cells()] == [True, False, True, False]
    every = config.model_copy(update={"downstream_seeds": "all"})
    assert all(c.do_downstream for c in every.cells())
    assert not any(c.do_downstream for c in SuiteConfig(downstream_seeds="all").cells())


@pytest.mark.parametrize(
    ("value", "expected"), [("rtn", ("rtn",)), ("none", ()), ("none,rtn", ("rtn",))]
)
def test_the_unquantized_control_needs_no_asking(value: str, expected: tuple[str, ...]) -> None:
    assert parse(SuiteConfig, {"preset": "demo", "controls": value}).controls == expected


@pytest.mark.parametrize(
    ("seeds", "looks", "expected"),
    [
        ("1-30", "auto", (5, 10, 15, 20, 25, 30)),
        ("1-30", "5,10,15,20,30", (5, 10, 15, 20, 30)),
        ("1-30", "7", (7, 30)),
        ("1-10", "auto", (3, 6, 9, 10)),
        ("1-5", "auto", (3, 5)),
        ("1-3", "none", (3,)),
        ("1-60", "auto", (10, 20, 30, 40, 50, 60)),
    ],
)
def test_the_looks_end_at_the_declared_maximum(seeds: str, looks: str, expected: Any) -> None:
    given = {"preset": "demo", "until": "settled", "seeds": seeds, "looks": looks}
    config = parse(SuiteConfig, given)
    assert config.schedule == expected
    again = parse(SuiteConfig, {**given, "looks": ",".join(map(str, config.schedule))})
    assert again.schedule == expected, "what is logged is what is read"


def test_a_fixed_suite_has_one_look() -> None:
    assert parse(SuiteConfig, {"preset": "demo"}).schedule == (5,)


def test_the_looks_of_a_preset_can_be_left_out() -> None:
    given = {"preset": "study", "until": "seeds", "methods": "random", "seeds": "1-4"}
    with pytest.raises(UserError, match=r"until=settled.*looks=none"):
        parse(SuiteConfig, given)
    assert parse(SuiteConfig, given | {"looks": "none"}).schedule == (4,)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"looks": "5,20"}, "looks=5,20: beyond the declared maximum of 10 seeds"),
        ({"looks": "5,3"}, "looks=5,3: the numbers of seeds must rise"),
        ({"looks": "3,3"}, "must rise"),
        ({"seeds": "1,2"}, "looks at least 3 seeds"),
        ({"methods": "random"}, "at least 2 methods"),
        ({"until": "seeds", "looks": "5"}, "looks=5 needs until=settled"),
    ],
)
def test_a_suite_that_cannot_be_settled_is_refused(given: dict[str, str], words: str) -> None:
    base = {"preset": "demo", "until": "settled", "seeds": "1-10"}
    with pytest.raises(UserError, match=words):
        parse(SuiteConfig, base | given)


def test_several_values_of_settings_are_a_dimension_of_the_grid() -> None:
    given = {"preset": "demo", "methods": "random", "seeds": "1,2", "models": "a,b"}
    config = parse(SuiteConfig, given | {"quant_bits": "3,4", "corpus": "sotu,c4"})
    assert config.sweep == {"quant_bits": (3, 4), "corpus": ("sotu", "c4")}
    assert [(c.model, c.quant_bits, c.corpus, c.seed) for c in config.cells()] == [
        (model, bits, corpus, seed)
        for model in ("a", "b")
        for bits in (3, 4)
        for corpus in ("sotu", "c4")
        for seed in (1, 2)
    ]
    assert {c.seq_len for c in config.cells()} == {512}
    assert parse(SuiteConfig, {"preset": "demo"}).sweep == {}


def test_a_single_run_takes_the_first_of_the_values_that_a_preset_lists(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("models: a/b\nquant_bits: [3, 4]\nseq_len: 64,128\n")
    config = parse(RunConfig, {"preset": str(path)})
    assert (config.quant_bits, config.seq_len) == (3, 64)
    assert parse(SuiteConfig, {"preset": str(path)}).sweep == {
        "quant_bits": (3, 4),
        "seq_len": (64, 128),
    }


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"quant_bits": "3,4", "until": "settled"}, "several values of quant_bits.*suites=A,B"),
        ({"group_size": "-1,64", "act_group_aware": "true"}, "group_size=-1 makes none"),
        ({"desc_act": "true", "act_group_aware": "true"}, "needs desc_act=false"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_in_a_suite_too(
    given: dict[str, str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        parse(SuiteConfig, {"preset": "demo"} | given)


@pytest.mark.parametrize(
    ("methods", "given", "second"),
    [
        ("random,gptq_default,cola_zero", {}, "gptq_default"),
        ("random,zipcal", {}, "random"),
        ("cola_zero,zipcal,random", {}, "zipcal"),
        ("cola_zero,random", {"primary": "random"}, "cola_zero"),
        ("gptq_default,random", {"baseline": "random"}, "random"),
        ("cola_zero", {}, "cola_zero"),
    ],
)
def test_the_baseline_is_the_one_named_or_the_usual_or_the_first(
    methods: str, given: dict[str, str], second: str
) -> None:
    assert parse(SuiteConfig, {"preset": "demo", "methods": methods} | given).second == second


def test_hours_are_a_number_or_none() -> None:
    assert parse(SuiteConfig, {"preset": "demo", "budget_hours": "8"}).budget_hours == 8
    assert parse(SuiteConfig, {"preset": "demo"}).budget_hours == "none"
