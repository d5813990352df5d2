"""What runs differ in beside model, method and seed: each setting is analysed within itself.

A table of several settings names the setting in its column `model`, as in
`smollm2-135m [quant_bits=3]`: whatever is done a model is then done a model and setting.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.reading.checks import (
    CELL,
    DECIDING,
    SHARED,
    SHARED_BY_MODEL,
    TEXT,
    UNQUANTIZED,
    Key,
    complete,
)
from colazero.settings import EVALUATION, EVERY, SWEPT

BASE, FACETS = "base_model", "facets"
"""The columns with the model alone, and with the names of the settings that differ."""
SETTINGS = tuple(dict.fromkeys((*SWEPT, *SHARED, *SHARED_BY_MODEL)))
EVALUATING = (*(one.name for one in DECIDING if one.stages in (EVALUATION, EVERY)), TEXT)
ROUNDING = (*EVALUATING, *(one.name for one in DECIDING if one.rounds))
"""What decides the unquantized model's result, and that of one rounded without calibration."""


def differing(table: pd.DataFrame) -> list[str]:
    """Return the settings that finished cells differ in, those resolved a model within a model.

    The text is one of them only where it differs among cells that agree in all others.
    """
    cells = table[(table["kind"] == "cell") & (table["error"] == "")]
    cells = cells.assign(device=cells["device"].str.split(":").str[0])
    found = [
        name
        for name in SETTINGS
        if name != TEXT
        and (
            cells.groupby("model")[name].nunique(dropna=False).max() > 1
            if name in SHARED_BY_MODEL
            else cells[name].nunique(dropna=False) > 1
        )
    ]
    texts = cells[cells[TEXT] != ""].groupby(["model", *found], dropna=False)[TEXT].nunique()
    return [*found, TEXT] if (texts > 1).any() else found


def by_setting(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return the table with the settings `names` in the column `model`.

    What stands beside the grid (the unquantized model, controls) gets a row in each setting of its
    suite whose cells it belongs to.
    """
    table = table.assign(base_model=table["model"], facets=", ".join(names))
    if not names:
        return table
    cells = table[table["kind"] == "cell"]
    cells = cells.assign(model=[_label(row, names) for row in _rows(cells)])
    found = [cells]
    places = cells.drop_duplicates(["suite", "model"])
    for row in _rows(table[table["kind"] != "cell"]):
        own = places[(places["suite"] == row["suite"]) & (places[BASE] == row[BASE])]
        fit = [
            model
            for model, place in zip(own["model"], _rows(own), strict=True)
            if _fits(row, place)
        ]
        copies = pd.DataFrame([row] * len(fit), columns=table.columns).astype(
            table.dtypes.to_dict()
        )
        found.append(copies.assign(model=fit))
    return pd.concat(found, ignore_index=True).astype(table.dtypes.to_dict())


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for _, row in table.iterrows()]


def _label(row: Mapping[str, object], names: Sequence[str]) -> str:
    return f"{row[BASE]} [{', '.join(f'{k}={v}' for k, v in setting(row, names).items())}]"


def setting(row: Mapping[str, object], names: Sequence[str]) -> dict[str, str]:
    """Return a row's settings of these names; the number of a device does not count."""
    found = {name: text(row[name]) for name in names}
    return found | ({"device": found["device"].split(":")[0]} if "device" in found else {})


def setting_of(model: str) -> str:
    """Return the setting behind a model's name, as in ` [quant_bits=3]`; '' if there is none."""
    _, bracket, setting = model.partition(" [")
    return bracket + setting


def text(value: object) -> str:
    """Write a setting's value: `?` where a run does not tell."""
    return "?" if pd.isna(value) or value == "" else str(value)  # type: ignore[call-overload]


def _fits(row: Mapping[str, object], place: Mapping[str, object]) -> bool:
    """Tell whether a run beside the grid has the settings of a cell, as far as it tells them."""
    names = EVALUATING if row["method"] == UNQUANTIZED else ROUNDING
    return all(text(row[n]) == "?" or text(row[n]) == text(place[n]) for n in names)


def with_baselines(table: pd.DataFrame) -> pd.DataFrame:
    """Add a row with an error for each model (and setting) that lacks its unquantized run."""
    return completed(table, [(model, UNQUANTIZED, None, 1) for model in table["model"].unique()])


def completed(table: pd.DataFrame, wanted: Sequence[Key]) -> pd.DataFrame:
    """Do as `complete` for a table of `by_setting`."""
    plain = dict(zip(table["model"], table[BASE], strict=True))
    names = table[FACETS].iloc[0] if len(table) else ""
    table = complete(table, wanted)
    return table.assign(**{BASE: table["model"].map(plain), FACETS: names})


def filled(
    table: pd.DataFrame, asked: Mapping[str, str] | None = None, apart: Collection[str] = ()
) -> pd.DataFrame:
    """Give cells that logged no settings, as they failed or are missing, those of their suite.

    That is what other cells of the suite and model have, or else what was `asked` for. `apart`:
    settings that are left as they are, as the suite has several values of them.
    """
    cells, groups = table["kind"] == "cell", [table["suite"], table["model"]]
    found = {}
    for name in (name for name in SETTINGS if name not in apart):
        column = table[name].mask(cells & table[name].astype("str").eq(""))
        known = column.groupby(groups).transform("first")
        value = (asked or {}).get(name, "auto")
        if value != "auto" and name in SWEPT:
            known = known.fillna(int(value) if column.dtype == "Int64" else value)
        column = column.where(column.notna() | ~cells, known)
        found[name] = column.fillna("") if table[name].dtype == "str" else column
    return table.assign(**found)


def newest(table: pd.DataFrame) -> pd.DataFrame:
    """Keep one run of each cell: the newest that finished, or else the newest."""
    order = table.assign(finished=table["error"] == "").sort_values(
        ["finished", "started"], kind="stable"
    )
    return table.loc[order.drop_duplicates(CELL, keep="last").index.sort_values()].reset_index(
        drop=True
    )


def facets(table: pd.DataFrame) -> list[str]:
    """Return the names of the settings that a table of `by_setting` divides."""
    names = str(table[FACETS].iloc[0]) if FACETS in table and len(table) else ""
    return names.split(", ") if names else []
