"""`--status` from another shell, of a suite that lives and of one that died."""

from __future__ import annotations

from pathlib import Path

import soak


def test_status_tells_from_another_shell_and_ends_what_is_dead(
    tiny_llama: Path, corpus_file: Path, tmp_path: Path
) -> None:
    arguments = soak.command(str(tiny_llama), str(corpus_file), workers=2)
    suite = soak.start(arguments, tmp_path)
    soak.wait_until(lambda: soak.any_run(tmp_path, status="RUNNING", kind="cell"))
    run_id = soak.any_run(tmp_path, status="RUNNING", kind="suite")[0].info.run_id
    told = soak.status(tmp_path, run_id).stdout
    assert "running" in told.splitlines()[0]
    assert "missing" in told.splitlines()[0]
    suite.kill()
    suite.wait()
    # The workers die with the suite, but not in the same moment.
    soak.wait_until(lambda: "running" not in soak.status(tmp_path, run_id).stdout, 60)
    told = soak.status(tmp_path, run_id).stdout
    assert "lost" in told
    assert not soak.any_run(tmp_path, status="RUNNING")
