"""The one exception that is shown to a user as a sentence instead of a stack trace."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches

WEB_PORT = r"(?!https?://[^\s/:@'\"]*:\d*/)"
"""Not HOST:PORT/…@… of a web server: there the colon begins a port and no password."""
PASSWORD = re.compile(rf"(?P<user>\b{WEB_PORT}[a-z][a-z0-9+.-]*://[^\s/:@'\"]*):[^\s'\"]*@", re.I)
SPELLED = re.compile(r"://[^/:@]*:(?!\d*/)(?P<secret>.+)@[^@]*$", re.S)
"""A URI and nothing else; its password may hold any character."""
HIDES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
"""Environment variables that may hold credentials."""
TOKEN = re.compile(r"(?P<scheme>\bhttps?://)[^\s/:@'\"]+@", re.I)
IN_QUERY = re.compile(
    r"(?P<name>(?:[?&]|;|%3B)(?!viewStateShareKey=)(?:\w*password|passwd|pwd|\w*token|\w*secret|\w*key)(?:=|%3D))"
    r"[^&;%\s\"]*",
    re.I,
)


class UserError(Exception):
    """A mistake of the user: the message says what is wrong, what is allowed and what to do.

    Credentials in it are replaced.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_credentials(message))


def without_credentials(text: str) -> str:
    """Return a text with `***` for each password and token in a URI in it.

    Passwords stand between a user name and the last @ after it. Tokens stand alone before a web
    server, or in the query of a URI. The tracking store's password is replaced wherever it occurs.
    """
    for name in HIDES:
        if found := SPELLED.search(os.environ.get(name, "")):
            text = text.replace(f":{found['secret']}@", ":***@")
    text = PASSWORD.sub(r"\g<user>:***@", text)
    text = TOKEN.sub(r"\g<scheme>***@", text)
    return IN_QUERY.sub(r"\g<name>***", text)


class DiscreetFormatter(logging.Formatter):
    """Formats log records, with their tracebacks, without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
        return without_credentials(super().format(record))


def log_discreetly(*, bars: bool) -> None:
    """Log warnings to stderr without credentials, and silence irrelevant messages of libraries.

    bars: whether libraries may draw progress bars. Call it before libraries are imported.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(DiscreetFormatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in ("torchao", "torch.utils._pytree"):  # about other kernels, and their own future
        logging.getLogger(name).setLevel(logging.ERROR)
    # Links of MLflow's with credentials in them, to another view than `client.where` names.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"  # a line per file
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # not each table of a new store
    if not bars:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # transformers obeys it too
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
        os.environ["TQDM_DISABLE"] = "1"  # transformers' bar of a GGUF file obeys no other


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without credentials, or the error's name."""
    return without_credentials((str(error).strip() or type(error).__name__).splitlines()[0])


def unknown(kind: str, value: str, allowed: Iterable[str], listing: str = "") -> UserError:
    """Return the error for a name that is not among `allowed`, with the nearest valid one.

    listing: what is allowed, where there are too many names to list.
    """
    names = sorted(allowed)
    near = get_close_matches(value.lower(), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UserError(
        f"unknown {kind} {value!r}.{hint} {listing or 'Allowed: ' + ', '.join(names)}."
    )
