"""What the entry points share: parameters and their help, a checked start, and exit codes."""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import yaml

from colazero import environment
from colazero.errors import UserError, first_line, log_discreetly, unknown, without_credentials
from colazero.settings import RunConfig
from colazero.suite_settings import (
    PRESET_DIR,
    SuiteConfig,
    allowed,
    parse,
    preset_names,
    preset_of,
    refuse_untaken,
)
from colazero.types import Progress
from entrypoints import _interrupts

EXIT_USER_ERROR = 2
LISTED = {"model": "models", "seed": "seeds"}
"""Parameters of a single run that take the first value of a preset's list."""

KEPT = ("runs:/", "models:/")
"""Prefixes of runs, and of models in the registry, in the tracking store."""


def main(
    description: str, parameters: Mapping[str, str], run: Callable[[dict[str, str]], int]
) -> NoReturn:
    """Read `--name=value` for each of `parameters`, call `run`, and exit with its return value.

    parameters: name → help, or '' for a setting, which has its own help.

    Every parameter defaults to `auto`: the preset's value. A user's mistake ends with one message
    on stderr and exit code 2.
    """
    log_discreetly(bars=sys.stderr.isatty())
    logging.getLogger("colazero").setLevel(logging.INFO)
    sys.excepthook = _show
    launched, given = environment.run_id(), dict[str, str]()
    if launched:
        threading.Thread(target=_end_with_launcher, daemon=True).start()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        _interrupts.begin()
        environment.check()
        given = _read(description, parameters)
        code = run(given)
    except UserError as error:
        message = explained(str(error), given)
        _say(f"error: {message}")
        _end_launched(launched, "FAILED", message)
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


def flag(given: dict[str, str], name: str) -> bool:
    """Take a parameter that is true or false out of `given`; it is false if it is not there."""
    value = given.pop(name, "auto").lower()
    if value not in ("auto", "true", "false"):
        raise UserError(f"{name}={value!r}: must be true or false.")
    return value == "true"


def fields(names: Iterable[str], **more: str) -> dict[str, str]:
    """Return the parameters of an entry point: `preset`, settings, and others with their help."""
    return {**dict.fromkeys(("preset", *names), ""), **more}


def start(
    given: Mapping[str, str],
    *,
    source: str = "",
    inherited: Iterable[str] = (),
    selects: bool = False,
    fetched: Callable[[RunConfig], object] = lambda _: None,
    keeps: str = "",
) -> RunConfig:
    """Return the configuration of a run, checked and its device taken; the store is connected.

    source: `runs:/ID` or `models:/NAME@ALIAS`. Settings in `inherited` that are not given are taken
    from its run, unless a preset is given. fetched: is called to fetch the source's files, before
    the settings are checked. keeps: the name of what `save_model` keeps, if there is any. Heavy
    libraries are imported here, after the device is taken.
    """
    config = parse(RunConfig, given)
    from colazero import devices

    device = devices.take(config.device)
    from colazero import pipeline
    from colazero.store import fetch, record
    from colazero.store.open import connect

    if source.startswith(KEPT):
        connect()
        of_run = fetch.settings(source, inherited)  # refuses a run that is not there
        if given.get("preset", "auto") == "auto":
            named = {name: value for name, value in given.items() if value != "auto"}
            config = parse(RunConfig, {**given, **of_run, **named})
        fetched(config)
    refuse_untaken(given, [config.quantizer])
    config = config.model_copy(update={"device": device})
    names = [] if config.model.startswith(KEPT) else [config.model]
    pipeline.check(config, [config.method] if selects else [], names)
    if keeps:
        record.refuse_unkeepable(config, keeps)
    connect()
    return config


def explained(message: str, given: Mapping[str, str]) -> str:
    """Return an error's message, with the preset that its value comes from, if any."""
    name = message.partition("=")[0]
    if "preset" not in given or given.get(name, "auto") != "auto":
        return message
    preset = preset_of(given)
    with suppress(OSError, UserError):
        if name in (yaml.safe_load((PRESET_DIR / f"{preset}.yaml").read_text()) or {}):
            chosen = given["preset"] == "auto" and preset == "full"
            why = ", which holds because a model is named" if chosen else ""
            instead = f"--{name}=VALUE" + (", or --preset=demo" if chosen else "")
            return f"{message} {name} comes from preset {preset!r}{why}: give {instead}."
    return message


def stage_bar(name: str) -> Callable[[str], Progress]:
    """Return a function that shows a progress bar for a stage, if stderr is a terminal."""
    from tqdm import tqdm

    def show(stage: str) -> Progress:
        form = "  {desc} {percentage:3.0f} % |{bar}| {remaining} left"
        bar = tqdm(desc=f"{name}: {stage}", leave=False, disable=None, bar_format=form)

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if done >= total:
                bar.close()

        return progress

    return show


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _say(without_credentials("".join(traceback.format_exception(kind, error, trace))))


def _say(text: str) -> None:
    with suppress(OSError):  # a terminal that was closed
        print(text, file=sys.stderr, flush=True)


def _flush() -> None:
    with suppress(OSError):
        sys.stdout.flush()


def _end_launched(run_id: str | None, status: str, reason: str) -> None:
    """End the run that `mlflow run` made for this process, if this process has not opened it.

    `mlflow run` itself may have ended with its terminal. The run gets a name from the command line.
    """
    if run_id is None or environment.run_id() is None:  # opened, it is ended there
        return
    from mlflow.exceptions import MlflowException

    from colazero.store import claims, client

    words = [word.removeprefix("--") for word in sys.argv[1:] if not word.endswith("=auto")]
    name = client.run_name(Path(sys.argv[0]).stem, *map(without_credentials, words))
    try:
        if client.find_run(run_id) is not None:
            claims.end_unbegun(run_id, name, status, reason)
    except (MlflowException, OSError) as error:
        logging.getLogger("colazero").warning("run %s stays open: %s", run_id, first_line(error))


def _end_with_launcher() -> None:
    """Send this process SIGTERM when the `mlflow run` that started it has ended.

    A shell between the two may still run.
    """
    import psutil

    launcher = psutil.Process().parent()
    while launcher and launcher.name() in ("sh", "bash", "dash", "zsh"):
        launcher = launcher.parent()
    while launcher and launcher.is_running() and launcher.status() != psutil.STATUS_ZOMBIE:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _read(description: str, parameters: Mapping[str, str]) -> dict[str, str]:
    name = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(
        prog=f"python -m entrypoints.{name}",
        usage="%(prog)s [--parameter=value ...]",
        description=description,
        allow_abbrev=False,
        exit_on_error=False,
    )
    asked = {"-h", "--help"} & set(sys.argv)  # importing what lists all names takes a second
    for name, text in parameters.items():
        about = (text or help_text(name, parameters)).replace("%", "%%") if asked else ""
        parser.add_argument(f"--{name}", default="auto", metavar="VALUE", help=about)
    try:
        values, rest = parser.parse_known_args()
    except argparse.ArgumentError as error:
        name = str(error.argument_name).removeprefix("--")
        about = parameters[name] or help_text(name, parameters)
        raise UserError(
            f"--{name} has no value: write --{name}=VALUE. {about[0].upper()}{about[1:]}."
        ) from None
    for argument in rest:
        if argument.startswith("--"):
            given = argument[2:].split("=")[0]
            raise unknown("parameter", given, parameters, f"`{parser.prog} --help` lists its own")
        raise UserError(f"unexpected argument {argument!r}: parameters are written --name=value.")
    return vars(values)


def help_text(name: str, parameters: Collection[str]) -> str:
    """Return the help of `preset` or of a setting: what it is, its values and its default.

    parameters: all parameters of the entry point.
    """
    if name == "preset":
        known = ", ".join(preset_names())
        return f"{known}, or a YAML file. Default: demo, or full if a model is named"
    kind = SuiteConfig if "models" in parameters else RunConfig
    about, values = str(kind.model_fields[name].description), _values(name, kind)
    unsaid = [v for v in values if not re.search(rf"(?<![\w-]){re.escape(v)}(?![\w-])", about)]
    if unsaid:
        about += f". Values: {', '.join(values)}"
    return f"{about}. Default: {_default(name, kind)}"


def _values(name: str, kind: type[RunConfig] | type[SuiteConfig]) -> list[str]:
    """Return the values that a parameter takes, as words."""
    from colazero.corpora import CORPORA, WITH_ARGUMENT
    from colazero.quantizers import QUANTIZERS, UNQUANTIZED
    from colazero.selection import METHODS

    if name in ("method", "methods"):
        return [*METHODS.names(), "MODULE:FUNCTION"]
    if name in ("corpus", "eval_corpora"):
        own = [f"{name}:{argument}" for name, argument in WITH_ARGUMENT.items()]
        return [*(n for n in CORPORA.names() if n not in WITH_ARGUMENT), *own]
    if name == "quantizer":
        return [*QUANTIZERS.names(), UNQUANTIZED]
    return allowed(kind.model_json_schema()["properties"][name])


def _default(name: str, kind: type[RunConfig] | type[SuiteConfig]) -> str:
    """Return a parameter's default, and in brackets the values that presets set."""
    single = kind is RunConfig
    key = LISTED.get(name, name) if single else name
    by_value: dict[str, list[str]] = {}
    for preset in preset_names():
        values = yaml.safe_load((PRESET_DIR / f"{preset}.yaml").read_text(encoding="utf-8"))
        if key in values:
            text = _text(values[key])
            if single and name in LISTED:
                text = re.split("[,-]" if name == "seed" else ",", text)[0]
            by_value.setdefault(text, []).append(preset)
    own = _text(kind.model_fields[name].default, "auto" if name == "looks" else "none")
    said = "; ".join(f"{value} in {', '.join(where)}" for value, where in by_value.items())
    return f"{own} ({said})" if said and set(by_value) != {own} else own


def _text(value: object, empty: str = "none") -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or empty
    return str(value).lower() if isinstance(value, bool) else str(value)
