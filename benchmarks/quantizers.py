"""A cell of each quantizer beside onepass: `python benchmarks/quantizers.py [--json] [...]`.

Takes any parameter of `single`. One cell of preset demo per quantizer (unless said otherwise), all
in one process, each in the same store; a first cell of onepass warms up and does not count. Prints
the seconds of quantizing and of the whole cell, and their ratio to onepass.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._harness import options_of, read, told
from benchmarks.cell import measure
from colazero.settings import RunConfig
from colazero.suite_settings import parse

QUANTIZERS = ("onepass", "awq", "sparsegpt", "wanda", "magnitude")
STAGES = ("quantize", "total")


def main() -> None:
    options, given = read(options_of(__doc__), RunConfig)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, told():
        os.chdir(folder)
        for quantizer in (QUANTIZERS[0], *QUANTIZERS):
            config = parse(RunConfig, {"preset": "demo"} | given | {"quantizer": quantizer})
            found[quantizer] = measure(config)
    base = found[QUANTIZERS[0]]
    rows = {
        name: {f"{stage}_sec": round(seconds[stage], 3) for stage in STAGES}
        | {f"{stage}_ratio": round(seconds[stage] / base[stage], 3) for stage in STAGES}
        for name, seconds in found.items()
    }
    if options.json:
        print(json.dumps(rows))
        return
    for name, row in rows.items():
        print(
            f"{name:10} quantize {row['quantize_sec']:7.2f} s, {row['quantize_ratio']:5.2f} of "
            f"onepass; cell {row['total_sec']:7.2f} s, {row['total_ratio']:5.2f} of onepass"
        )


if __name__ == "__main__":
    main()
