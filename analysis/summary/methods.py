"""Every method on its own: its independent observations and what they say."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
from scipy import special

from analysis.stats import Description, PooledVariance, describe, pooled_variance
from analysis.stats.samples import Interval


@dataclass(frozen=True)
class Method:
    """One method on one model. Undefined numbers are None.

    values: the metric, one value an independent observation. n_seeds, n_draws: finished cells by
    seed, and quantizations that were made for them.
    one_set: all seeds gave one calibration set; the observations are then its replicates, and what
    they show holds for this set. change_percent: of the mean from the unquantized model.
    selection, quantization: seconds over the observations. overlap: mean pairwise overlap of the
    sets, 0 to 1.
    """

    model: str
    name: str
    values: tuple[float, ...]
    n_seeds: int
    n_draws: int
    one_set: bool
    description: Description
    change_percent: float | None
    selection: Description
    quantization: Description
    overlap: float | None = None

    @property
    def n(self) -> int:
        """Independent observations."""
        return self.description.n

    @property
    def cv_ci95(self) -> Interval | None:
        """95 % limits of the CV in %: the χ² interval of the standard deviation, over the mean.

        It takes the observations as normally distributed.
        """
        cv = self.description.cv_percent
        if cv is None or self.n < 2:
            return None
        df = self.n - 1
        low, high = (math.sqrt(df / special.chdtri(df, p)) for p in (0.025, 0.975))
        return cv * low, cv * high


def method(
    cells: pd.DataFrame,
    once: pd.DataFrame,
    metric: str,
    unquantized: float | None,
    overlap: float | None,
    key: tuple[str, str],
) -> Method:
    """Describe one method; cells: finished ones, once: `observations` of them; key: its name."""
    rows, own = (t[(t["model"] == key[0]) & (t["method"] == key[1])] for t in (cells, once))
    values = tuple(float(v) for v in own[metric].dropna())
    description = describe(values)
    mean = description.mean
    return Method(
        *key,
        values=values,
        n_seeds=int(rows["seed"].nunique()),
        n_draws=int(own["draws"].sum()),
        one_set=bool(rows["one_set"].any()),
        description=description,
        change_percent=None if mean is None or not unquantized else 100 * (mean / unquantized - 1),
        selection=describe(own["selection_time_sec"].to_list()),
        quantization=describe(own["quant_time_sec"].to_list()),
        overlap=overlap,
    )


def arithmetic(cells: pd.DataFrame, model: str, metric: str) -> PooledVariance | None:
    """Return the variance of one draw in the metric's unit, from all sets of a model with several.

    cells: finished ones.
    """
    rows = cells[(cells["model"] == model) & (cells["kind"] == "cell")]
    draws = rows.drop_duplicates(["method", "observation", "draw"])
    seed = draws["observation"].where(~draws["one_set"], "")
    return pooled_variance(
        group.to_numpy() for _, group in draws.groupby([draws["method"], seed])[metric]
    )
