"""List files and runs that are left over, and remove them: `python -m entrypoints.clean`.

Nothing is removed without `--do=remove --what=KINDS`, as in `--what=models --suite=RUN_ID`.
"""

from __future__ import annotations

if not __package__:  # as a script, select.py would hide the standard library's `select`
    raise SystemExit("error: run it as `python -m entrypoints.clean`, or `colazero clean`.")

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from colazero.errors import UserError, first_line, unknown
from entrypoints._session import main

if TYPE_CHECKING:
    from colazero.store.clean import Item

KINDS = ("models", "records", "running", "cache")
PARAMETERS = {
    "what": f"{', '.join(KINDS)}, comma-separated. Default: list all",
    "suite": "only the models of these suites (run ids, comma-separated). Default: list all, "
    "remove only models of deleted runs",
    "do": "list, remove, or send (records: log what no store has yet). Default: list",
}


def run(given: dict[str, str]) -> int:
    do = "list" if given["do"] == "auto" else given["do"]
    what = list(KINDS) if given["what"] == "auto" else given["what"].split(",")
    if do not in ("list", "remove", "send"):
        raise UserError(f"do={do!r}: must be list, remove or send.")
    for kind in what:
        if kind not in KINDS:
            raise unknown("what", kind, KINDS)
    if do == "remove" and given["what"] == "auto":
        raise UserError(f"do=remove needs what, one or more of {', '.join(KINDS)}.")
    if do == "send" and what != ["records"]:
        raise UserError("do=send needs what=records: nothing else can be sent.")
    from colazero.store.open import connect

    connect(reading=True)
    suites = [] if given["suite"] == "auto" else given["suite"].split(",")
    sums: dict[tuple[str, str], list[int]] = defaultdict(list)
    kept = 0
    for item in _items(what, suites, do):
        sums[item.what, item.suite].append(item.size)
        if item.suite and not suites:
            continue  # a sum per suite says enough
        kept += not _done(item, do)
    _say_sums(sums, suites, kept)
    if do == "list":
        print("nothing was removed: --do=remove --what=… removes")
    return int(kept > 0 and do != "list")


def _items(what: list[str], suites: list[str], do: str) -> Iterator[Item]:
    from colazero.store import clean

    if "models" in what:
        if suites:
            yield from clean.models_of(suites)
        else:
            yield from clean.kept_in_store(orphans=do != "list")
    if "records" in what:
        yield from clean.stale_records(send=do == "send")
    if "running" in what:
        yield from clean.left_running()
    if "cache" in what:
        yield from clean.cached()


def _done(item: Item, do: str) -> bool:
    """Print a line about an item, and list, remove or send it. Return True if that succeeded."""
    line = f"{item.what:8} {item.size / 1e6:10,.1f} MB  {item.name}"
    if item.keep:
        print(f"{line}: stays, {item.keep}")
        return False
    if do == "list":
        print(line)
        return True
    try:
        item.remove()
    except Exception as error:  # the next one may succeed
        print(f"{line}: stays, {first_line(error)}")
        return False
    print(f"{line}: {'removed' if do == 'remove' else 'sent'}")
    return True


def _say_sums(sums: dict[tuple[str, str], list[int]], suites: list[str], kept: int) -> None:
    """Print one line per suite with models, one per kind, and how to remove them."""
    from colazero.store import clean, client

    for (kind, suite), sizes in sums.items():
        if suite:
            run = client.find_run(suite)
            name = f"{len(sizes)} of suite {suite} ({run.info.run_name if run else 'deleted'})"
            print(f"{kind:8} {sum(sizes) / 1e6:10,.1f} MB  {name}")
    for kind in dict.fromkeys(kind for kind, _ in sums):
        sizes = [size for (one, _), part in sums.items() if one == kind for size in part]
        print(f"{kind:8} {sum(sizes) / 1e6:10,.1f} MB  {len(sizes)} in all")
    if suites and kept:
        together = clean.takers_of(suites).closure(suites)
        if len(together) > len(suites):
            print(f"to remove all of these: --what=models --suite={','.join(together)}")
    elif not suites and any(suite for _, suite in sums):
        print("the models of a suite: --what=models --suite=RUN_ID --do=remove")


if __name__ == "__main__":
    main(__doc__, PARAMETERS, run)
