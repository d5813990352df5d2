"""Suites killed at random moments come through: nothing lost, nothing doubled, nothing open."""

from __future__ import annotations

import random
import time
from pathlib import Path

import soak


def test_killed_nine_times_at_random_suites_come_through(
    tiny_llama: Path, corpus_file: Path, tmp_path: Path
) -> None:
    arguments = soak.command(str(tiny_llama), str(corpus_file), workers=1)
    begin = time.monotonic()
    assert soak.start(arguments, tmp_path).wait() == 0, soak.log_of(tmp_path)
    seconds = time.monotonic() - begin
    wanted = soak.digests(soak.all_runs(tmp_path))
    result = soak.soak(list(soak.SIGNALS), 9, arguments, 0.7 * seconds, wanted, random.Random(1))
    assert result["kills"] == dict.fromkeys(soak.SIGNALS, 3)
    assert result["wrong"] == []
