"""Compare settings with each other: the tables of docs/evidence/study-2.md, from the store.

    python studies/settings.py --suites=RUN_ID,RUN_ID [--reference=position_weight=1.0]
        [--corpus=NAME] [--out=docs]

One row per setting and method of all suites together: means and standard deviations over seeds, and
the difference in perplexity from the reference on the same text, with its 95 % interval over seeds
and text (not adjusted for the number of rows). --reference names the settings of one row, as many
as tell it from the others; the method is the row's own. Without it the first setting is used.
--corpus names the evaluation text as the metrics' names do; without it the first one is used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from matplotlib.figure import Figure

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
from analysis.report.write import image
from analysis.stats.samples import percent_interval
from analysis.summary import Options, Summary, summarize
from analysis.summary.methods import Method
from colazero.errors import UserError
from colazero.figures import BLACK, label, legend, page, style_of, styled


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


@styled
def weights(ppl: Summary) -> Figure:
    """Draw means and their 95 % t-intervals over seeds against the first positions' weight."""
    caption = (
        "Perplexity of random calibration sets of 16,384 tokens against the weight of the first "
        "position over the length of the window; means of 5 sets with 95 % t-intervals, on these "
        "windows. Dashed: the unquantized model."
    )
    figure, (axis,) = page(1, 1, 3.2, caption)
    points: dict[int, list[tuple[float, Method]]] = {}
    for model in ppl.models:
        setting = ppl.place(model).setting
        length, weight = int(setting["seq_len"]), setting["position_weight"]
        if weight != "attention":
            points.setdefault(length, []).append((float(weight) / length, ppl.of(model)[0]))
    for length in sorted(points):
        colour, marker = style_of(str(length), [str(one) for one in sorted(points)])
        x, methods = zip(*sorted(points[length], key=lambda point: point[0]), strict=True)
        means = [one.description.mean for one in methods]
        axis.plot(x, means, marker=marker, color=colour, lw=1.1, label=f"windows of {length:,}")
        for place_x, one in zip(x, methods, strict=True):
            if one.description.ci95 is not None:
                axis.plot([place_x] * 2, one.description.ci95, color=colour, lw=1.6)
    axis.axhline(next(iter(ppl.unquantized.values())), color=BLACK, ls=(0, (5, 3)), lw=1.0)
    axis.set_xscale("log", base=2)
    axis.set_xlabel("position_weight / seq_len")
    axis.set_ylabel("perplexity")
    axis.grid(color="#e6e6e6", lw=0.7)
    legend(axis)
    return figure


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
    parser.add_argument("--corpus", help="the evaluation text, if runs have several")
    parser.add_argument("--out", help="folder for images/study-2-weights.png")
    given = parser.parse_args()
    ids = given.suites.split(",")
    cells = load_suite(ids[0]) if len(ids) == 1 else load_suites(ids)
    of = f".{given.corpus}" if given.corpus else ""
    names = ("perplexity" + of, "kl_divergence" + of)
    ppl, kl = (summarize(cells, Options(metric=name)) for name in names)
    plain = {number(value, 3) for value in ppl.unquantized.values()}
    texts = {f"{len(t.tokens)} windows, {t.tokens.sum():,.0f} tokens" for t in ppl.texts.values()}
    print(f"Unquantized: {', '.join(sorted(plain))}. Evaluated on {', '.join(sorted(texts))}.\n")
    print(markdown(table(ppl, kl, given.reference)))
    if given.out:
        drawn = image(weights(ppl), "png")
        (Path(given.out) / "images" / "study-2-weights.png").write_bytes(drawn)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
