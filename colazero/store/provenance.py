"""Where a result comes from: versions, the state of the code, digests of a checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import distributions, version
from pathlib import Path

from colazero import __version__
from colazero.cache import file_digest
from colazero.environment import code_of_suite

LIBRARIES = ("torch", "transformers", "gptqmodel", "mlflow", "datasets", "scikit-learn", "numpy")
PACKAGES = "packages.txt"
"""The artifact of each run that lists what `pip freeze` would."""
ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    """Return library versions and the state of the code, as tags."""
    tags = {f"version.{library}": number for library, number in versions().items()}
    return tags | {"version.colazero": __version__} | git_state()


def versions() -> dict[str, str]:
    return {library: version(library) for library in LIBRARIES}


@lru_cache
def packages() -> str:
    """Return every installed package as `name==version`, one per line, as `pip freeze` does."""
    installed = {(d.name.lower(), d.version): d.name for d in distributions() if d.name}
    return "".join(f"{name}=={number}\n" for (_, number), name in sorted(installed.items()))


@lru_cache
def git_state() -> dict[str, str]:
    """Return the commit of the code, and `false` or the digest of uncommitted changes, for people.

    Both are `unknown` without git. The first call decides: imported code does not change with its
    file. A suite on another machine passes its own in COLAZERO_CODE. Reuse does not depend on
    this, but on the files that a run imports.
    """
    of_suite = code_of_suite()
    if of_suite is not None:
        return of_suite

    def git(*arguments: str) -> bytes:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, check=True).stdout

    try:
        commit = git("rev-parse", "HEAD").decode().strip()
        changes = git("status", "--porcelain")
        if changes:
            changes += git("diff", "HEAD")
            for name in sorted(git("ls-files", "-oz", "--exclude-standard", "*.py").split(b"\0")):
                changes += (ROOT / os.fsdecode(name)).read_bytes() if name else b""
    except (OSError, subprocess.CalledProcessError):
        return {"colazero.git_commit": "unknown", "colazero.git_dirty": "unknown"}
    dirty = hashlib.sha256(changes).hexdigest()[:12] if changes else "false"
    return {"colazero.git_commit": commit, "colazero.git_dirty": dirty}


def manifest(checkpoint: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return file name → SHA-256 of everything in a checkpoint directory but the manifest.

    `known`: those of files that were hashed while they were written.
    """
    names = [str(f.relative_to(checkpoint)) for f in sorted(checkpoint.rglob("*")) if f.is_file()]
    return {
        name: (known or {}).get(name) or file_digest(checkpoint / name)
        for name in names
        if name != "sha256.json"
    }


def weights_digest(files: Mapping[str, str]) -> str:
    """Return 16 hex digits over the weight files of a manifest (logs and times are left out)."""
    weights = {name: digest for name, digest in files.items() if name.endswith(".safetensors")}
    return hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()[:16]
