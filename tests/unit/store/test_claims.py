"""Which processes count as alive."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil

from colazero.store import claims


def named(process: subprocess.Popen[bytes]) -> str:
    """Return what `owner` says in that process."""
    host = claims.owner().rsplit(" ", 2)[0]
    return f"{host} {process.pid} {psutil.Process(process.pid).create_time():.2f}"


def test_a_killed_process_that_nobody_waited_for_is_dead() -> None:
    """As in a container whose first process adopts orphans and never waits for them."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = named(process)
    assert claims.owner_alive(name)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays a zombie
    assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
    assert claims.owner_alive(name) is False
    process.communicate()
    assert claims.owner_alive(name) is False


def test_this_process_is_alive_and_one_of_another_machine_unknown() -> None:
    assert claims.owner_alive(claims.owner()) is True
    assert claims.owner_alive("elsewhere/pid:[1] 1 1.00") is None
