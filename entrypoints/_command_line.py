"""What the entry points share: reading parameters, and turning errors into exit codes."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

from colazero.config import RunConfig, SuiteConfig
from colazero.errors import UserError, unknown
from entrypoints import _interrupts

EXIT_USER_ERROR = 2


PRESET = "demo, quick, validation, full, a YAML file; auto: demo, or full when a model is named"


def described(names: Iterable[str], **more: str) -> dict[str, str]:
    """Return name → description for `preset` and `names`, fields of the configurations."""
    fields = RunConfig.model_fields | SuiteConfig.model_fields
    return {"preset": PRESET, **{name: fields[name].description or "" for name in names}, **more}


def main(
    description: str, parameters: Mapping[str, str], run: Callable[[dict[str, str]], int]
) -> NoReturn:
    """Read `--name=value` for each of `parameters` (name → help) and exit with what `run` returns.

    Every parameter defaults to `auto`: what the preset says. A user's mistake ends with one
    message on stderr and exit code 2.
    """
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("colazero").setLevel(logging.INFO)
    for name in ("torchao", "torch.utils._pytree"):  # of other machines' kernels, of their future
        logging.getLogger(name).setLevel(logging.ERROR)
    _interrupts.install()
    if "MLFLOW_RUN_ID" in os.environ:
        threading.Thread(target=_end_with_launcher, daemon=True).start()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        code = run(_read(description, parameters))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except _interrupts.Terminated:
        sys.stdout.flush()
        os._exit(128 + signal.SIGTERM)  # threads that still compute would abort an orderly exit
    sys.stdout.flush()
    sys.exit(code)


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
    for name, text in parameters.items():
        parser.add_argument(
            f"--{name}", default="auto", metavar="VALUE", help=text.replace("%", "%%")
        )
    values, rest = parser.parse_known_args()
    _refuse(rest, parameters)
    return vars(values)


def _refuse(rest: list[str], parameters: Iterable[str]) -> None:
    for argument in rest:
        if argument.startswith("--"):
            raise unknown("parameter", argument[2:].split("=")[0], parameters)
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: parameters are written --name=value.")
