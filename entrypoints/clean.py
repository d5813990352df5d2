"""What takes room and what stayed behind: listed, or removed. `python -m entrypoints.clean`.

Lists all and removes nothing unless told: `--do=remove --what=models --suite=RUN_ID`.
"""

from __future__ import annotations

if not __package__:  # as a script, select.py would hide the standard library's `select`
    raise SystemExit("error: run it as `python -m entrypoints.clean`, or `colazero clean`.")

from collections.abc import Iterator
from typing import TYPE_CHECKING

from colazero.errors import UserError, first_line, unknown
from entrypoints._command_line import main

if TYPE_CHECKING:
    from colazero.store.clean import Item

KINDS = ("models", "records", "running", "cache")
PARAMETERS = {
    "what": f"{', '.join(KINDS)}, comma separated. Default: all are listed",
    "suite": "run ids of suites whose models are meant, comma separated. Default: none; all are "
    "listed, and those of deleted runs removed",
    "do": "list, remove, or send (records: log what no store has yet). Default: list",
}


def run(given: dict[str, str]) -> int:
    do = "list" if given["do"] == "auto" else given["do"]
    what = list(KINDS) if given["what"] == "auto" else given["what"].split(",")
    if do not in ("list", "remove", "send"):
        raise unknown("value of do", do, ["list", "remove", "send"])
    for kind in what:
        if kind not in KINDS:
            raise unknown("value of what", kind, KINDS)
    if do == "remove" and given["what"] == "auto":
        raise UserError(f"do=remove: say what, one or several of {', '.join(KINDS)}.")
    if do == "send" and what != ["records"]:
        raise UserError("do=send is for what=records.")
    from colazero.store.open import connect

    connect(reading=True)
    left = 0
    for item in _items(what, given["suite"], do):
        left += not _done(item, do)
    if do == "list":
        print("nothing was removed: --do=remove --what=… does it")
    return int(left > 0 and do != "list")


def _items(what: list[str], suite: str, do: str) -> Iterator[Item]:
    from colazero.store import clean

    if "models" in what:
        if suite == "auto":
            yield from clean.kept_in_store(orphans=do != "list")
        else:
            yield from clean.models_of(suite.split(","))
    if "records" in what:
        yield from clean.stale_records(send=do == "send")
    if "running" in what:
        yield from clean.left_running()
    if "cache" in what:
        yield from clean.cached()


def _done(item: Item, do: str) -> bool:
    """Print a line about an item, and do with it what is asked; tell whether that was done."""
    line = f"{item.what:8} {item.size / 1e6:10,.1f} MB  {item.name}"
    if item.keep:
        print(f"{line}: stays, {item.keep}")
        return False
    if do == "list":
        print(line)
        return True
    try:
        item.remove()
    except Exception as error:  # one that cannot go keeps no other from going
        print(f"{line}: stays, {first_line(error)}")
        return False
    print(f"{line}: {'removed' if do == 'remove' else 'sent'}")
    return True


if __name__ == "__main__":
    main(__doc__, PARAMETERS, run)
