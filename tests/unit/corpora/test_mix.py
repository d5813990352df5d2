"""Several corpora in given shares of tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from colazero import corpora, models
from colazero.corpora import parts_of, shares
from colazero.corpora.tokens import token_pool
from colazero.errors import UserError
from colazero.settings import RunConfig
from colazero.suite_settings import SuiteConfig, parse
from colazero.types import Corpus, Model


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Model:
    return models.fetch(str(tiny_llama))


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Two files whose documents tell by their words which one they are of; the first is longer."""
    rng = np.random.default_rng(0)
    names = []
    for word, count, comma in (("bado", 300, ""), ("zora", 90, ", really")):
        texts = [
            " ".join([word] * int(size)) + f" {i}"
            for i, size in enumerate(rng.integers(5, 80, count))
        ]
        file = tmp_path / f"{word}{comma}.txt"
        file.write_text("\n\n".join(texts))
        names.append(f"file:{file}")
    return names[0], names[1]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("drawn", [1.0, 0.5])
def test_parts_have_their_shares_of_tokens_from_the_beginning_on(
    files: tuple[str, str], model: Model, share: float, drawn: float
) -> None:
    name = f"mix:{files[0]}={share},{files[1]}={1 - share:g}"
    pool = token_pool(model, name, drawn, 7)
    lengths = pool.stops - pool.starts
    first = np.array(["bado" in text for text in pool.texts])
    assert lengths[first].sum() / lengths.sum() == pytest.approx(share, abs=0.02)
    half = np.arange(len(lengths)) < len(lengths) // 2
    part = lengths[first & half].sum() / lengths[half].sum()
    assert part == pytest.approx(share, abs=0.05), "not one part after the other"
    whole = [token_pool(model, file, drawn, 7) for file in files]
    used = [lengths[first].sum() / share, lengths[~first].sum() / (1 - share)]
    available = min(
        len(one.tokens) / part for one, part in zip(whole, (share, 1 - share), strict=True)
    )
    assert min(used) > 0.8 * available, "as much as the shares allow"
    assert pool.documents is not None
    corpus = corpora.load(name)
    assert [corpus.train[i] for i in pool.documents] == list(pool.texts)


def test_the_test_split_is_that_of_all_and_nothing_of_it_is_trained_on(
    files: tuple[str, str],
) -> None:
    corpus = corpora.load(f"mix:{files[0]}=0.5,{files[1]}=0.5")
    alone = [corpora.load(file) for file in files]
    assert list(corpus.test) == [text for one in alone for text in one.test]
    assert not set(corpus.test) & set(corpus.train)
    assert sum(size for size, _ in corpus.parts) == len(corpus.train)


def test_the_revision_follows_the_parts_and_their_shares(files: tuple[str, str]) -> None:
    names = [f"mix:{files[0]}={a},{files[1]}={b}" for a, b in ((0.5, 0.5), (0.4, 0.6))]
    revisions = {corpora.load(name).revision for name in names}
    Path(files[0].removeprefix("file:")).write_text("one\n\ntwo\n\nthree")
    corpora.load.cache_clear()
    revisions.add(corpora.load(names[0]).revision)
    assert len(revisions) == 3


@pytest.mark.parametrize(
    ("argument", "why"),
    [
        ("sotu=1", "two or more different parts"),
        ("sotu", "two or more different parts"),
        ("", "mix:CORPUS=SHARE"),
        ("sotu=0.5,sotu=0.5", "two or more different parts"),
        ("sotu=0.5,c4=0.4", "add up to 1, not to 0.9"),
        ("sotu=0,c4=1", "above 0"),
        ("sotu=1.5,c4=0.5", "add up to 1"),
        ("sotu=0.5,c4=0.5,", "two or more different parts"),
        ("sotu=0.5.1,c4=0.5", "could not convert"),
        ("sotu=0.5,mix:c4=0.5", "a part is a mix itself"),
        ("sotu=0.5,sutu=0.5", "Did you mean|sotu"),
    ],
)
def test_what_is_no_mix_is_refused_before_anything_is_read(argument: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        corpora.check(f"mix:{argument}")


def test_a_comma_or_an_equals_sign_in_a_path_is_part_of_it(files: tuple[str, str]) -> None:
    assert list(shares(f"{files[0]}=0.25,{files[1]}=0.75")) == list(files)
    assert shares("file:run=x/a.txt=0.5,sotu=0.5") == {"file:run=x/a.txt": 0.5, "sotu": 0.5}
    with pytest.raises(UserError, match="add up to 1, not to 2"):
        shares("file:a=1,b.txt=0.5,sotu=0.5")  # could be either: told, not guessed


def test_a_mix_is_one_item_of_a_list() -> None:
    mixed = "mix:sotu=0.5,file:my.jsonl=0.5"
    config = parse(SuiteConfig, {"eval_corpora": f"sotu,{mixed},c4"})
    assert config.eval_corpora == ("sotu", mixed, "c4")
    other = "mix:c4=0.2,file:a,b.txt=0.8"
    config = parse(SuiteConfig, {"eval_corpora": f"{mixed},mathqa,{other},sotu"})
    assert config.eval_corpora == (mixed, "mathqa", other, "sotu")
    assert parse(RunConfig, {"corpus": mixed}).corpus == mixed
    assert parts_of(mixed) == ["sotu", "file:my.jsonl"]
    assert parts_of("sotu") == ["sotu"]


def test_every_document_is_left_out_or_in_by_half_of_itself() -> None:
    both = Corpus("m", "1", ["a"] * 10 + ["b"] * 10, [], parts=((10, 0.5), (10, 0.5)))
    _, numbers = corpora.mixed(both, np.array([100] * 10 + [10] * 10))
    kept = [int((numbers < 10).sum()), int((numbers >= 10).sum())]
    assert kept == [1, 10], "100 of 1,000 tokens, and all 100"
