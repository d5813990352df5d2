"""Compare settings with each other: the tables of docs/evidence/study-2.md, from the store.

    python studies/settings.py --suites=RUN_ID,RUN_ID [--reference=position_weight=1.0]

One row per setting and method of all suites together: means and standard deviations over seeds, and
the difference in perplexity from the reference on the same text, with its 95 % interval over seeds
and text (not adjusted for the number of rows). --reference names the settings of one row, as many
as tell it from the others; the method is the row's own. Without it the first setting is used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from analysis.reading import load_suite, load_suites
from analysis.report.tables import (
    Table,
    columns,
    interval,
    markdown,
    mean_std,
    number,
    observed,
    p_text,
    percent,
    place,
)
from analysis.stats.samples import percent_interval
from analysis.summary import Options, Summary, summarize
from colazero.figures import label


def table(ppl: Summary, kl: Summary, reference: str) -> Table:
    """Return the rows of all settings; each is compared with the reference's own method."""
    header = [*columns(ppl), "method", "observations", "perplexity", "KL divergence"]
    left = len(header) - 2
    header += ["above unquantized, %", "against the reference, %", "95 % interval", "p"]
    against = _named(ppl, reference)
    rows = []
    for model in ppl.models:
        for one in ppl.of(model):
            compared = ppl.between((model, one.name), (against, one.name))
            limits = p = change = None
            if model != against and compared is not None:
                change = compared.percent
                limits = percent_interval(*compared.ci) if compared.ci else None
                p = compared.p_value
            rows.append(
                [
                    *(*place(ppl, model), label(one.name), observed(one), mean_std(one, 3)),
                    *(mean_std(kl.method(model, one.name), 4), percent(one.change_percent)),
                    "reference" if model == against else percent(change),
                    *(interval(limits, 2, sign=True), p_text(p)),
                ]
            )
    return Table(header, rows, left=left)


def _named(summary: Summary, reference: str) -> str:
    wanted = dict(part.strip().split("=", 1) for part in reference.split(",") if part.strip())
    for model in summary.models:
        if wanted.items() <= summary.place(model).setting.items():
            return model
    raise SystemExit(f"--reference={reference!r}: none of {', '.join(summary.models)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suites", required=True, help="run ids, comma separated")
    parser.add_argument("--reference", default="", help="settings of one row: NAME=VALUE, ...")
    given = parser.parse_args()
    ids = given.suites.split(",")
    cells = load_suite(ids[0]) if len(ids) == 1 else load_suites(ids)
    ppl, kl = (summarize(cells, Options(metric=name)) for name in ("perplexity", "kl_divergence"))
    plain = {number(value, 3) for value in ppl.unquantized.values()}
    texts = {f"{len(t.tokens)} windows, {t.tokens.sum():,.0f} tokens" for t in ppl.texts.values()}
    print(f"Unquantized: {', '.join(sorted(plain))}. Evaluated on {', '.join(sorted(texts))}.\n")
    print(markdown(table(ppl, kl, given.reference)))


if __name__ == "__main__":
    main()
