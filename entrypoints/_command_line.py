"""What the entry points share: reading parameters, and turning errors into exit codes."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from colazero import environment
from colazero.errors import DiscreetFormatter, UserError, first_line, unknown, without_credentials
from entrypoints import _interrupts
from entrypoints._help import help_text

EXIT_USER_ERROR = 2


def fields(names: Iterable[str], **more: str) -> dict[str, str]:
    """Return the parameters of an entry point: `preset`, fields, and others with their help."""
    return {**dict.fromkeys(("preset", *names), ""), **more}


def settled(given: Mapping[str, str], of_run: Mapping[str, str]) -> dict[str, str]:
    """Return what was given, and of a run's settings those that were left open.

    Who names a preset has left none open.
    """
    if given.get("preset", "auto") != "auto":
        return dict(given)
    told = {name: value for name, value in given.items() if value != "auto"}
    return {**given, **of_run, **told}


def main(
    description: str, parameters: Mapping[str, str], run: Callable[[dict[str, str]], int]
) -> NoReturn:
    """Read `--name=value` for each of `parameters` and exit with what `run` returns.

    parameters: name → help, or '' for a field of the configurations, whose help is made of it.

    Every parameter defaults to `auto`: what the preset says. A user's mistake ends with one
    message on stderr and exit code 2.
    """
    _speak_discreetly()
    launched = environment.run_id()
    if launched:
        threading.Thread(target=_end_with_launcher, daemon=True).start()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        _interrupts.begin()
        environment.check()
        code = run(_read(description, parameters))
    except UserError as error:
        _say(f"error: {error}")
        _end_launched(launched, "FAILED", str(error))
        code = EXIT_USER_ERROR
    except Exception as error:
        _end_launched(launched, "FAILED", f"{type(error).__name__}: {error}")
        raise
    except KeyboardInterrupt:
        _say("interrupted")
        _end_launched(launched, "KILLED", "interrupted by Ctrl-C")
        code = 130
    except _interrupts.Terminated as error:
        _end_launched(launched, "KILLED", f"Terminated: {error}")
        _flush()
        os._exit(128 + signal.SIGTERM)  # threads that still compute would abort an orderly exit
    _flush()
    sys.exit(code)


def _speak_discreetly() -> None:
    """Send logs to stderr, and show no credentials in them, in tracebacks and in MLflow's links."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(DiscreetFormatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("colazero").setLevel(logging.INFO)
    for name in ("torchao", "torch.utils._pytree"):  # of other machines' kernels, of their future
        logging.getLogger(name).setLevel(logging.ERROR)
    sys.excepthook = _show
    # Links with credentials in them, and to another view than the one that `pages` names.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    if not sys.stderr.isatty():
        os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _say(without_credentials("".join(traceback.format_exception(kind, error, trace))))


def _say(text: str) -> None:
    with suppress(OSError):  # a terminal that was closed
        print(text, file=sys.stderr, flush=True)


def _flush() -> None:
    with suppress(OSError):
        sys.stdout.flush()


def _end_launched(run_id: str | None, status: str, reason: str) -> None:
    """End the run that `mlflow run` made for us with its reason, if it was not opened here.

    It is called by what was asked. `mlflow run` may be gone itself, with the terminal that it ran
    in.
    """
    if run_id is None or environment.run_id() is None:  # opened, it is ended there
        return
    from mlflow.exceptions import MlflowException

    from colazero.store import claims, client

    try:
        if client.find_run(run_id) is not None:
            claims.end_unbegun(run_id, client.run_name(*_asked(sys.argv)), status, reason)
    except (MlflowException, OSError) as error:
        logging.getLogger("colazero").warning("run %s stays open: %s", run_id, first_line(error))


def _asked(words: list[str]) -> list[str]:
    """Return the entry point and what it was given, as in `single`, `method=colazero`."""
    given = [word.removeprefix("--") for word in words[1:] if not word.endswith("=auto")]
    return [Path(words[0]).stem, *map(without_credentials, given)]


def _end_with_launcher() -> None:
    """End this process, as by SIGTERM, when the `mlflow run` that started it is gone.

    Between the two stands a shell, which may live on.
    """
    import psutil

    launcher = psutil.Process().parent()
    while launcher and launcher.name() in ("sh", "bash", "dash", "zsh"):
        launcher = launcher.parent()
    while launcher and launcher.is_running() and launcher.status() != psutil.STATUS_ZOMBIE:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _read(description: str, parameters: Mapping[str, str]) -> dict[str, str]:
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    asked = {"-h", "--help"} & set(sys.argv)  # importing what lists all names takes a second
    for name, text in parameters.items():
        about = (text or help_text(name, parameters)).replace("%", "%%") if asked else ""
        parser.add_argument(f"--{name}", default="auto", metavar="VALUE", help=about)
    values, rest = parser.parse_known_args()
    _refuse(rest, parameters)
    return vars(values)


def _refuse(rest: list[str], parameters: Iterable[str]) -> None:
    for argument in rest:
        if argument.startswith("--"):
            raise unknown("parameter", argument[2:].split("=")[0], parameters)
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: parameters are written --name=value.")
