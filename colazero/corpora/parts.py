"""What a corpus's name is made of: `mix:sotu=0.5,file:my.jsonl=0.5` names two, with shares."""

from __future__ import annotations

import re

from colazero.errors import UserError

PART = re.compile(r"(?P<name>.+?)=(?P<share>[0-9.]+)(?:,|$)")
"""A part and its share; a path may hold commas."""
SHAPE = "mix:CORPUS=SHARE,CORPUS=SHARE, as in mix:sotu=0.5,file:my.jsonl=0.5"


def parts_of(name: str) -> list[str]:
    """Return the corpora that a name is made of: itself, or the parts of a mix."""
    kind, _, argument = name.partition(":")
    return list(shares(argument)) if kind == "mix" else [name]


def shares(argument: str) -> dict[str, float]:
    """Return each part's name and its share of the tokens; UserError unless they add up to 1."""
    found = list(PART.finditer(argument))
    whole = "".join(match[0] for match in found) == argument and not argument.endswith(",")
    names = [match["name"] for match in found]
    if not whole or len(found) < 2 or len(set(names)) < len(names):
        raise UserError(f"corpus 'mix:{argument}' must be two or more different parts: {SHAPE}.")
    if nested := [name for name in names if name.startswith("mix:")]:
        raise UserError(f"corpus 'mix:{argument}': a part is a mix itself, {nested[0]!r}.")
    try:
        given = [float(match["share"]) for match in found]
    except ValueError as error:
        raise UserError(f"corpus 'mix:{argument}': {error}. It must be {SHAPE}.") from None
    if min(given) <= 0 or abs(sum(given) - 1) > 1e-6:
        raise UserError(
            f"corpus 'mix:{argument}': shares must be above 0 and add up to 1, not to "
            f"{sum(given):g}."
        )
    return dict(zip(names, given, strict=True))
