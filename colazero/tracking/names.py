"""Names that go into a store, made such that every store takes them and no two become one.

MLflow, databases and file systems each refuse other characters and lengths. A name that had to
change, or to be cut, gets a digest of what it was.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath

LONGEST = 120
"""Characters. File systems take 255 bytes, databases 250 characters of a metric's name; what stands
before and behind a name needs room as well."""
LONGEST_RUN = 250
"""The length of the column in which MLflow's databases keep a run's name."""
LONGEST_DATASET = 250
"""Half of what MLflow takes."""
BETWEEN = "·"
"""Stands between the parts of a run's name, in none of which it is likely to be."""


def joined(*parts: str) -> str:
    """Return a run's name made of parts, what tells runs apart first: `cola_zero·seed42·opt-6.7b`.

    It may stand in every store; in the names of models and files each sign becomes `__`.
    """
    return of_run(BETWEEN.join(parts))


def of_model(name: str) -> str:
    """Return a name for a logged model, in which MLflow takes no dot, colon, slash or quote."""
    return _of_parts(name, "-")


def of_file(name: str) -> str:
    """Return a name for a file or a folder."""
    return _of_parts(name, ".-")


def of_result(name: str) -> str:
    """Return a downstream result's name (`arc_easy.acc`) as a part of a metric's."""
    return _safe(name, ".-")


def of_corpus(name: str) -> str:
    """Return a corpus's name as a part of a metric's and a file's name: `sotu`, `mine-1a2b3c4d`.

    A corpus of the user's own is called by the stem of its file and a digest of all of its name,
    so that `a/text.txt` and `b/text.txt` are two.
    """
    if not name.startswith("file:"):
        return _safe(name, ".-")
    stem = PurePosixPath(name.removeprefix("file:").rstrip("/")).stem
    return _with_digest(_mended(stem, "-"), name)


def of_run(name: str) -> str:
    """Return a name for a run, in which every character may stand."""
    return name if len(name) <= LONGEST_RUN else _with_digest(name[:LONGEST], name)


def of_dataset(name: str) -> str:
    """Return a name for a dataset, in which every character may stand."""
    return name if len(name) <= LONGEST_DATASET else _with_digest(name[:LONGEST], name)


def _of_parts(name: str, signs: str) -> str:
    """As `_safe`, of `joined` parts: a digest if they could not be told apart any more."""
    plain = name.replace(BETWEEN, "__")
    mended = _mended(plain, signs)
    told_apart = plain.replace("__", BETWEEN) == name
    return mended if mended == plain and told_apart and name else _with_digest(mended, name)


def _safe(name: str, signs: str) -> str:
    mended = _mended(name, signs)
    return name if mended == name and name else _with_digest(mended, name)


def _mended(name: str, signs: str) -> str:
    """Return a name with `_` in the place of all but ASCII letters, digits, `_` and `signs`."""
    return re.sub(rf"[^A-Za-z0-9_{re.escape(signs)}]|^\.+", "_", name)[:LONGEST]


def _with_digest(mended: str, name: str) -> str:
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{mended or 'unnamed'}-{digest}"
