"""Choosing calibration data for GPTQ: selection, quantization, evaluation, one suite of runs."""

import os

# GPTQModel 7.6 sizes a thread pool at import from half of the cores and then asks it for two
# workers, which fails on two cores and fewer. It must be set before anybody imports GPTQModel.
if not os.environ.get("GPTQMODEL_CPU_WORKERS"):
    os.environ["GPTQMODEL_CPU_WORKERS"] = str(max(2, min(12, (os.cpu_count() or 2) // 2)))

# Threads of an OpenMP team wait for each other by spinning, by default for so long that a machine
# which does anything else at the same time got seven times slower. Spinning a little and then
# sleeping costs nothing on an idle machine. It is read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

__version__ = "0.1.0"
