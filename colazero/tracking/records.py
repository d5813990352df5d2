"""What a run has to say, on disk and whole before any of it is sent to the tracking store.

A cell's result may be hours of work, and the store a server that is down at the moment it is
done. So a run writes into a record, a folder in the cache; the record is sealed when the run is
over, and only a sealed record is sent. Whoever is interrupted while sending can send it again:
every part of it has one place in the store.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from colazero.cache import cache_dir, file_digest
from colazero.errors import UserError

SEAL = "record.json"


@dataclass
class Record:
    """Parameters, tags, metrics ([name, value, milliseconds]), datasets and files of one run.

    `measured_on`: metric → name and digest of the dataset it was measured on. `artifacts` and
    `model` below `folder` hold the files; `model` describes the latter.
    """

    run_id: str
    store: str
    owner: str
    status: str = ""
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[tuple[str, float, int]] = field(default_factory=list)
    datasets: list[dict[str, str]] = field(default_factory=list)
    measured_on: dict[str, tuple[str, str]] = field(default_factory=dict)
    model: dict[str, str] = field(default_factory=dict)
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)
    """Digests of files that were told when they were added, so that none is read twice for it."""

    @property
    def folder(self) -> Path:
        """Return where the record is."""
        return root() / self.run_id

    def begin(self) -> None:
        """Make an empty folder with a name on it, so that it can be told whose it is."""
        self.discard()
        self.folder.mkdir(parents=True)
        self._write()

    def artifact(self, path: str) -> Path:
        """Return where an artifact's file goes."""
        return self._below("artifacts", path)

    def add_metrics(self, values: Mapping[str, float]) -> None:
        """Add metrics, with the time that it is now."""
        now = int(time.time() * 1000)
        self.metrics += [(name, float(value), now) for name, value in values.items()]

    def workspace(self) -> Path:
        """Return a folder for files on their way, on the record's file system; gone with it."""
        folder = self.folder / "work"
        folder.mkdir(exist_ok=True)
        return folder

    def add_files(
        self,
        source: Path,
        path: str = "",
        kind: str = "artifacts",
        digests: Mapping[str, str] | None = None,
    ) -> None:
        """Add a folder's files; on the same file system they take no more room.

        `digests`: what is known of them already, by their names in `source`. Of a file that had to
        be copied it is not taken.
        """
        for file in sorted(source.rglob("*")):
            name = file.relative_to(source)
            if file.is_file():
                target = self._below(kind, str(Path(path) / name))
                if link_or_copy(file, target) and str(name) in (digests or {}):
                    self.known[str(target.relative_to(self.folder))] = (digests or {})[str(name)]

    def seal(self, status: str) -> None:
        """Write down everything, and what the files are; from here on the record counts."""
        self.status = status
        manifest = self.artifact("manifest.json")
        manifest.unlink(missing_ok=True)
        self.files = {
            str(file.relative_to(self.folder)): (file.stat().st_size, self._digest(file))
            for kind in ("artifacts", "model")
            for file in sorted((self.folder / kind).rglob("*"))
            if file.is_file()
        }
        if self.files:
            manifest.write_text(json.dumps(self.files, indent=1) + "\n")
            self.tags["colazero.manifest"] = file_digest(manifest)
        self._write()

    def _digest(self, file: Path) -> str:
        return self.known.get(str(file.relative_to(self.folder))) or file_digest(file)

    def whole(self) -> bool:
        """Tell whether the record is sealed and its files are what was sealed."""
        try:
            return bool(self.status) and all(
                file_digest(self.folder / name) == digest
                for name, (_, digest) in self.files.items()
            )
        except OSError:
            return False

    def discard(self) -> None:
        """Remove the record."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _below(self, kind: str, path: str) -> Path:
        target = self.folder / kind / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _write(self) -> None:
        draft = self.folder / f"{SEAL}.draft"
        with draft.open("w") as stream:
            json.dump(asdict(self), stream)
            stream.flush()
            os.fsync(stream.fileno())
        draft.rename(self.folder / SEAL)


def read(run_id: str) -> Record | None:
    """Return a run's record, sealed or not; None if there is none."""
    try:
        values: dict[str, Any] = json.loads((root() / run_id / SEAL).read_text())
        values["metrics"] = [tuple(metric) for metric in values["metrics"]]
        return Record(**values)
    except (OSError, ValueError, TypeError):
        return None


def refuse_unwritable() -> None:
    """Raise UserError, before a run is opened, if none could write its record."""
    try:
        root().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root()):
            pass
    except OSError as error:
        raise UserError(
            f"the cache {root().parent} cannot be written ({error.strerror}). Make room or give "
            "yourself the right to write there, or name another folder in COLAZERO_CACHE."
        ) from error


def left_behind() -> Iterator[Record]:
    """Yield all records in the cache."""
    for folder in sorted(root().glob("*")):
        found = read(folder.name)
        if found is not None:
            yield found


def root() -> Path:
    """Return the folder that holds all records."""
    return cache_dir() / "records"


def link_or_copy(source: str | Path, target: str | Path) -> bool:
    """Give a file another name, or where that cannot be a copy; tell whether it was the former."""
    try:
        os.link(source, target)
        return True
    except OSError:
        shutil.copyfile(source, target)
        return False
