"""BOS stands where the rule says, in calibration as in evaluation; in a text it is text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from colazero import pipeline
from colazero.corpora import bos
from colazero.corpora.tokens import Vocabulary, vocabulary
from colazero.errors import UserError
from colazero.settings import RunConfig
from colazero.types import Model

PLAIN = Vocabulary("0", frozenset({0, 1}), (), (0,))
WRITES = Vocabulary("0", frozenset({0, 1}), (0,), (0,))
NONE = Vocabulary("0", frozenset({1}))


@pytest.fixture
def family(tmp_path: Path) -> Callable[[str], Model]:
    def of(model_type: str) -> Model:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        return Model("m", tmp_path, "0")

    return of


@pytest.mark.parametrize(
    ("model_type", "known", "rule"),
    [
        ("gemma", WRITES, "always"),
        ("gemma2", WRITES, "always"),
        ("gemma3_text", WRITES, "always"),
        ("gemma3", PLAIN, "always"),
        ("vaultgemma", PLAIN, "always"),
        ("recurrent_gemma", WRITES, "always"),
        ("gemma2", NONE, "first"),
        ("llama", WRITES, "first"),
        ("opt", WRITES, "first"),
        ("qwen2", NONE, "first"),
    ],
)
def test_auto(
    family: Callable[[str], Model], model_type: str, known: Vocabulary, rule: str
) -> None:
    assert bos.resolve("auto", family(model_type), known) == rule


def test_what_is_asked_for_is_done_and_needs_a_token(family: Callable[[str], Model]) -> None:
    model = family("llama")
    assert [bos.resolve(r, model, PLAIN) for r in ("always", "first", "never")] == [
        *("always", "first", "never"),
    ]
    with pytest.raises(UserError, match="bos='always'"):
        bos.resolve("always", model, NONE)
    ids = np.arange(5, 9, dtype=np.int32)
    assert (bos.of_window("always", PLAIN), bos.of_text("always", PLAIN, ids)) == ((0,), ())
    assert (bos.of_window("first", WRITES), bos.of_text("first", WRITES, ids)) == ((), (0,))
    assert bos.of_text("first", WRITES, ids - 5) == (), "a chat template wrote it"
    assert (bos.of_window("never", WRITES), bos.of_text("never", WRITES, ids)) == ((), ())


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Model:
    """A model whose tokenizer writes BOS by itself."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(folder)
    return Model("m", folder, tmp_path.name)


@pytest.fixture
def corpus(paragraphs: list[str], tmp_path: Path) -> str:
    """Its documents spell special tokens out."""
    (tmp_path / "own.txt").write_text("\n\n".join(p + " <s> </s>" for p in paragraphs))
    return f"file:{tmp_path / 'own.txt'}"


@pytest.mark.parametrize("rule", ["always", "first", "never"])
def test_one_rule_in_calibration_and_evaluation(model: Model, corpus: str, rule: str) -> None:
    config = RunConfig(
        *(), corpus=corpus, eval_corpora=(corpus,), method="random", bos=rule, device="cpu",
        n_calibration_samples=3, seq_len=48, eval_windows="all", seed=1,
    )  # fmt: skip
    pipeline.check_data(config, model)
    chosen, _ = pipeline.calibrate(config, model)
    given = pipeline.with_bos(config, model, chosen).windows
    tested = pipeline.evaluation_text(model, corpus, 48, "all", rule).windows
    assert given.shape == (3, 48)
    assert tested.shape[1] == 48
    special = list(vocabulary(model).special)
    for windows in (given, tested):
        expected = np.zeros(windows.shape, dtype=bool)
        expected[:, 0] = rule == "always"
        if windows is tested and rule == "first":
            expected[0, 0] = True
        assert np.array_equal(np.isin(windows, special), expected)
    assert chosen.notes["special_tokens_written"] > 0
    assert chosen.notes["special_tokens"] == 0


def test_windows_of_evaluation_are_cut_from_the_same_stream(model: Model, corpus: str) -> None:
    always = pipeline.evaluation_text(model, corpus, 48, "all", "always").windows
    never = pipeline.evaluation_text(model, corpus, 47, "all", "never").windows
    assert np.array_equal(always[:, 1:], never)
