"""Lost, hung and failing cells cost only themselves."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import soak


def test_lost_hung_and_failing_cells_cost_only_themselves(
    tiny_llama: Path, corpus_file: Path, tmp_path: Path, in_workers: Callable[[str], None]
) -> None:
    arguments = soak.command(str(tiny_llama), str(corpus_file), workers=2)
    in_workers(f"""
        import os, resource, signal, time
        from pathlib import Path
        from colazero import pipeline

        real = pipeline.quantize

        def disturbed(config, *rest):
            once = Path({str(tmp_path)!r}) / "killed_once"
            if config.seed == 60 and not once.exists():
                once.touch()
                os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory is out
            if config.seed == 61:
                os.kill(os.getpid(), signal.SIGKILL)
            if config.seed == 62:
                limit = resource.getrlimit(resource.RLIMIT_AS)
                resource.setrlimit(resource.RLIMIT_AS, (1, limit[1]))
                try:
                    bytearray(10**10)
                finally:
                    resource.setrlimit(resource.RLIMIT_AS, limit)
            if config.seed == 63:
                time.sleep(10**6)
            if config.seed == 64:
                limit = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
                try:
                    return real(config, *rest)
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            return real(config, *rest)

        pipeline.quantize = disturbed
    """)
    given = [word for word in arguments if not word.startswith(("--seeds", "--methods"))]
    given += ["--methods=random", "--seeds=60-65", "--cell_time_limit=3"]
    suite = soak.start(given, tmp_path, os.environ["PYTHONPATH"])
    assert suite.wait() == 1
    runs = {run.info.run_name.partition("·")[0]: run for run in soak.all_runs(tmp_path)}
    said = {seed: run.data.tags.get("colazero.error", "") for seed, run in runs.items()}
    statuses = {seed: run.info.status for seed, run in runs.items() if seed.isdigit()}
    assert statuses == {
        "60": "FINISHED",
        "61": "FAILED",
        "62": "FAILED",
        "63": "FAILED",
        "64": "FAILED",
        "65": "FINISHED",
    }, said
    assert "out of memory?" in said["61"]
    assert "MemoryError" in said["62"]
    assert "cell_time_limit=3" in said["63"]
    assert "File too large" in said["64"]
    assert said["60"] == said["65"] == ""
    shutil.rmtree(tmp_path / "in_workers")
    assert soak.start([*given[:-1], "--cell_time_limit=60"], tmp_path).wait() == 0
    finished = [run.info.run_name for run in soak.any_run(tmp_path, "FINISHED", "cell")]
    own = Counter(
        run.info.run_name
        for run in soak.any_run(tmp_path, "FINISHED", "cell")
        if "colazero.source_run" not in run.data.tags
    )
    assert len(finished) == 2 + 6
    assert set(own.values()) == {1}
    assert len(own) == 6
