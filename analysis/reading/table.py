"""A table of runs: its checks, its cells and observations, and the settings that differ.

A table of several settings names the setting in its column `model`, as in
`smollm2-135m [quant_bits=3]`. Whatever is done per model is then done per model and setting.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from colazero.errors import UserError
from colazero.settings import CELL, EVALUATION, EVERY, SETTINGS, SWEPT

UNQUANTIZED = "unquantized"
Key = tuple[str, str, int | None, int]
Row = Mapping[str, Any] | pd.Series
TEXT = "evaluation_text"
"""The column with the digest of what a run was evaluated on: names of corpora may stay the same."""
DECIDING = [one for name, one in SETTINGS.items() if one.decides and name not in CELL]
VERSIONS = ("version.torch", "version.transformers", "version.gptqmodel")
SHARED = (*(one.name for one in DECIDING if not one.per_model), *VERSIONS)
SHARED_BY_MODEL = (*(one.name for one in DECIDING if one.per_model), "model_revision", TEXT)
"""What decides a result apart from the cell's name; the second group is resolved per model."""
BASE, FACETS = "base_model", "facets"
"""The columns with the model alone, and with the names of the settings that differ."""
COLUMNS = tuple(dict.fromkeys((*SWEPT, *SHARED, *SHARED_BY_MODEL)))
EVALUATING = (*(one.name for one in DECIDING if one.stages in (EVALUATION, EVERY)), TEXT)
ROUNDING = (*EVALUATING, *(one.name for one in DECIDING if "rtn" in one.quantizers))
"""What decides the unquantized model's result, and that of one rounded without calibration."""
# MLflow returns a logged infinity as 1.797e308.
LARGEST = 1e100


class RunsError(UserError):
    """Runs that cannot make one table. The message names them and says what to do."""


def keys(table: pd.DataFrame) -> list[Key]:
    """Return each row's cell: model, method, seed (None for an unquantized model), replicate."""
    seeds = [None if pd.isna(seed) else int(seed) for seed in table["seed"]]
    replicates = map(int, table["replicate"])
    return list(zip(table["model"], table["method"], seeds, replicates, strict=True))


def names_of(rows: pd.DataFrame) -> str:
    """Name cells in a sentence, as in `model/random/seed 42`; the first 10 of them."""
    names = [
        f"{model}/{method}"
        + ("" if seed is None else f"/seed {seed}")
        + (f"/replicate {replicate}" if replicate > 1 else "")
        for model, method, seed, replicate in keys(rows.head(10))
    ]
    more = len(rows) - len(names)
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")


def finished(table: pd.DataFrame) -> pd.DataFrame:
    """Return the cells of the grid that have a result."""
    return table[(table["kind"] == "cell") & (table["error"] == "")]


def drop_repeats(table: pd.DataFrame) -> pd.DataFrame:
    """Drop a cell's failed attempts once it finished."""
    good = table["error"] == ""
    done = good.groupby([table[name] for name in CELL], dropna=False).transform("any")
    return table[good | ~done].reset_index(drop=True)


def complete(table: pd.DataFrame, wanted: Sequence[Key]) -> pd.DataFrame:
    """Add a row with the error `there is no such run` for every wanted cell that has none."""
    there = set(keys(table))
    missing = [key for key in dict.fromkeys(wanted) if key not in there]
    if not missing:
        return table
    added = pd.DataFrame(missing, columns=CELL).assign(
        kind=["baseline" if method == UNQUANTIZED else "cell" for _, method, *_ in missing],
        status="MISSING",
        error="there is no such run",
    )
    if BASE in table:
        plain = dict(zip(table["model"], table[BASE], strict=True))
        added = added.assign(**{BASE: added["model"].map(plain), FACETS: table[FACETS].iloc[0]})
    added = added.astype({"seed": "Int64", "replicate": "Int64"})
    joined = pd.concat([table, added], ignore_index=True)
    return joined.astype(table.dtypes.to_dict()).fillna(
        {name: "" for name in table.columns if table[name].dtype == "str"}
    )


def checked(table: pd.DataFrame, where: str, *, allow_failed: bool) -> pd.DataFrame:
    """Return a table of `by_setting` with the columns of `mark_observations`.

    A metric that is not finite becomes an error of its cell. RunsError if a cell is there twice, if
    finished cells differ in settings that the column `model` does not name, or, unless
    `allow_failed`, if a cell has an error. where: what was read.
    """
    if table.empty:
        raise RunsError(f"{where} holds no cell.")
    table = _blank_non_finite(table)
    twice = table[table.duplicated(CELL, keep="first")]
    if len(twice):
        raise RunsError(
            f"{where} holds more than one run of {names_of(twice)}. A repeat is not a new "
            "observation: delete one of them, or narrow what is read with a filter."
        )
    named = facets(table)
    for name, model, values in _apart(table):
        if name not in named:
            raise RunsError(
                f"{where} mixes settings: {name}{model and f' of {model}'} is "
                f"{' and '.join(values[:5])}. Runs of different settings are not compared: narrow "
                "what is read with a filter."
            )
    bad = table[table["error"] != ""]
    if len(bad) and not allow_failed:
        raise RunsError(
            f"{where} is incomplete: {len(bad)} of {len(table)} runs have no result: "
            f"{names_of(bad)}. The first reason: {bad['error'].iloc[0]}"
        )
    return mark_observations(table)


def _blank_non_finite(table: pd.DataFrame) -> pd.DataFrame:
    """Turn a metric that is not finite into an error of its cell, and its number into NaN."""
    metrics = table.select_dtypes("float64").columns
    values = table[metrics]
    bad = values.abs() > LARGEST
    lacking = (table["error"] == "") & table["perplexity"].isna() & ~bad["perplexity"]
    table = table.copy()
    table.loc[lacking, "error"] = "the run has no perplexity"
    for index in np.flatnonzero(bad.any(axis=1)):
        names = ", ".join(metrics[bad.iloc[index]])
        table.loc[table.index[index], "error"] = f"not finite: {names}"
    table[metrics] = values.mask(bad)
    return table


def mark_observations(table: pd.DataFrame) -> pd.DataFrame:
    """Add the columns `calibration_set`, `draw`, `one_set` and `observation`.

    calibration_set: names the set, whatever the order of its windows. draw: names one quantization,
    a set in one order. Without a logged digest both are the id of the run that did the work.
    one_set: all finished cells of the model and method have one set. Its draws are then the
    observations. Else each seed is one, its replicates averaged, also where two seeds drew one set.
    observation: rows with the same model, method and observation are one.
    """
    origin = table["source_run"].where(table["source_run"] != "", table["run_id"])
    digest, order = (
        origin.map(table[name].groupby(origin).max())  # '' sorts first: what a sharing run knows
        for name in ("calibration_digest", "order_digest")
    )
    known = digest != ""
    table = table.assign(
        calibration_set=digest.where(known, origin),
        draw=(digest + "/" + order).where(known, origin),
    )
    sets = table["calibration_set"].where(table["error"] == "")
    one = sets.groupby([table["model"], table["method"]]).transform("nunique") == 1
    seed = table["seed"].astype("str").where(table["seed"].notna(), "")
    return table.assign(one_set=one, observation=table["draw"].where(one, seed))


def observations(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per independent observation of a table that `load_suite` reads.

    A seed's replicates are averaged; of a method with one set each draw is a row. Rows with an
    error are left out. Columns: those of the table, numbers as means, the rest from the first
    row; `draws` counts the rows that were averaged.
    """
    keys = ["model", "method", "observation"]
    draws = table[table["error"] == ""].drop_duplicates([*keys, "draw"])
    groups = draws.groupby(keys, sort=False)
    metrics = list(table.select_dtypes("float64").columns)
    found = groups.first().assign(draws=groups.size())
    found[metrics] = groups[metrics].mean()
    return found.reset_index()[[*table.columns, "draws"]]


def mixed_devices(table: pd.DataFrame) -> str:
    """Say that rows of a table were computed on different devices; '' if all are of one."""
    count = table.loc[table["device_name"] != "", "device_name"].value_counts()
    if len(count) < 2:
        return ""
    parts = ", ".join(f"{number} on {name}" for name, number in sorted(count.items()))
    return (
        f"The runs were computed on different devices ({parts}): differences between them are "
        "partly arithmetic."
    )


def differing(table: pd.DataFrame) -> list[str]:
    """Return the settings that finished cells differ in; those resolved per model, within a model.

    The evaluation text counts only if it differs among cells that agree in all other settings.
    """
    return list(dict.fromkeys(name for name, *_ in _apart(table)))


def _apart(table: pd.DataFrame) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each setting that finished cells differ in, the model if within one, and the values."""
    cells = finished(table)
    cells = cells.assign(device=cells["device"].str.split(":").str[0])
    found = []
    for name in (name for name in COLUMNS if name != TEXT):
        rows = taking(cells, name)
        groups = rows.groupby("model") if name in SHARED_BY_MODEL else [("", rows)]
        for model, own in groups:
            values = sorted(map(str, own[name].unique()))
            if len(values) > 1:
                found.append(name)
                yield name, str(model), values
    told = cells[cells[TEXT] != ""]  # runs of older versions do not tell
    for _, own in told.groupby(["model", *dict.fromkeys(found)], dropna=False):
        texts = sorted(own[TEXT].unique())
        if len(texts) > 1:
            yield TEXT, str(own["model"].iloc[0]), texts


def taking(cells: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the cells whose quantizer takes a setting: all, if the name is not a setting's."""
    one = SETTINGS.get(name)
    return cells[cells["quantizer"].map(one.taken).astype(bool)] if one else cells


def by_setting(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return the table with the settings `names` in the column `model`.

    A run outside the grid (the unquantized model, a control) gets a row in each setting of its
    suite whose cells it belongs to.
    """
    table = table.assign(base_model=table["model"], facets=", ".join(names))
    if not names:
        return table
    cells = table[table["kind"] == "cell"]
    found = [cells.assign(model=[_label(row, names) for _, row in cells.iterrows()])]
    places = [row for _, row in found[0].drop_duplicates(["suite", "model"]).iterrows()]
    for index, row in table[table["kind"] != "cell"].iterrows():
        fit = [place["model"] for place in places if _fits(row, place)]
        found.append(table.loc[[index] * len(fit)].assign(model=fit))
    return pd.concat(found, ignore_index=True).astype(table.dtypes.to_dict())


def _fits(row: Row, place: Row) -> bool:
    """Return True if a run outside the grid has suite, model and settings of a cell.

    Of the settings, those that the run logged and that decide its result.
    """
    names = EVALUATING if row["method"] == UNQUANTIZED else ROUNDING
    return all(row[n] == place[n] for n in ("suite", BASE)) and all(
        text(row[n]) == "?" or text(row[n]) == text(place[n]) for n in names
    )


def _label(row: Row, names: Sequence[str]) -> str:
    return f"{row[BASE]} [{', '.join(f'{k}={v}' for k, v in setting(row, names).items())}]"


def setting(row: Row, names: Sequence[str]) -> dict[str, str]:
    """Return a row's settings of these names that its quantizer takes.

    The number of a device does not count.
    """
    taken = [n for n in names if n not in SETTINGS or SETTINGS[n].taken(str(row["quantizer"]))]
    found = {name: text(row[name]) for name in taken}
    return found | ({"device": found["device"].split(":")[0]} if "device" in found else {})


def setting_of(model: str) -> str:
    """Return the setting behind a model's name, as in ` [quant_bits=3]`; '' if there is none."""
    _, bracket, setting = model.partition(" [")
    return bracket + setting


def text(value: object) -> str:
    """Write a setting's value: `?` where a run does not tell."""
    return "?" if pd.isna(value) or value == "" else str(value)  # type: ignore[call-overload]


def with_baselines(table: pd.DataFrame) -> pd.DataFrame:
    """Add a row with an error for each model (and setting) that lacks its unquantized run."""
    return complete(table, [(model, UNQUANTIZED, None, 1) for model in table["model"].unique()])


def filled(
    table: pd.DataFrame, asked: Mapping[str, str] | None = None, apart: Collection[str] = ()
) -> pd.DataFrame:
    """Give the suite's settings to failed or missing cells, which did not log settings.

    That is what other cells of the suite and model have, or else what was `asked` for. `apart`:
    settings that are left as they are, as the suite has several values of them.
    """
    cells, groups = table["kind"] == "cell", [table["suite"], table["model"]]
    found = {}
    for name in (name for name in COLUMNS if name not in apart):
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
    kept = order.drop_duplicates(CELL, keep="last").index.sort_values()
    return table.loc[kept].reset_index(drop=True)


def facets(table: pd.DataFrame) -> list[str]:
    """Return the names of the settings that a table of `by_setting` divides."""
    names = str(table[FACETS].iloc[0]) if FACETS in table and len(table) else ""
    return names.split(", ") if names else []
