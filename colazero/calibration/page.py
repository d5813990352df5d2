"""The page on which the chosen windows can be read: one file, for MLflow's artifact viewer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import Environment
from numpy.typing import NDArray

from colazero.types import CalibrationSet, Span, TokenPool

CHARACTERS = 200
"""How much of a window is shown."""
TOKENS = 4 * CHARACTERS
"""So many suffice: a character has at most four bytes, and a token at least one."""

MEASURES = {
    "tokens_given": ("tokens", "{:,.0f}"),
    "documents_used": ("documents used", "{:,.0f}"),
    "documents_share": ("share of the corpus's documents", "{:.2f} %"),
    "type_token_ratio": ("type-token ratio", "{:.4f}"),
    "entropy_bits": ("entropy, bits", "{:.2f}"),
    "kl_from_corpus_bits": ("KL divergence from the corpus, bits", "{:.3f}"),
    "test_13gram_overlap": ("13-grams that are in the test split too", "{:.2f} %"),
    "test_13gram_overlap_worst_window": ("the same in the worst window", "{:.2f} %"),
}

# No scripts and nothing from elsewhere: MLflow shows the file in a sandboxed frame. Text of any
# language, direction and control character is kept inside its own cell.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: #1a1a1a;
  background: #fff; max-width: 64rem; margin: 0 auto; padding: 1.2rem 1.2rem 3rem; }
h1 { font-size: 1.4rem; margin: 0 0 .2rem; }
h2 { font-size: 1.1rem; margin: 1.8rem 0 .5rem; border-bottom: 1px solid #ccc; }
.sub, small, summary { color: #555; }
img { width: 100%; max-width: 46rem; height: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem .3rem 0; border-bottom: 1px solid #ddd; text-align: left;
  vertical-align: top; }
th { border-bottom: 2px solid #888; }
.n { text-align: right; white-space: nowrap; }
.from { white-space: nowrap; }
details ul { margin: .1rem 0; padding-left: 1rem; }
.text { unicode-bidi: isolate; white-space: pre-wrap; overflow-wrap: anywhere; width: 100%;
  font-family: Georgia, "Times New Roman", serif; font-size: .95rem; line-height: 1.4; }
@media print {
  body { font-size: 10pt; max-width: none; padding: 0; }
  tr, img { break-inside: avoid; }
}
@page { size: A4; margin: 16mm; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="sub">{{ subtitle }}</p>
<img src="{{ image }}" alt="{{ alt }}">
<h2>Measures</h2>
<table>
{%- for name, value in measures %}
<tr><td>{{ name }}</td><td class="n">{{ value }}</td></tr>
{%- endfor %}
</table>
<h2>The first {{ characters }} characters of every window</h2>
<table>
<thead><tr><th class="n">window</th><th>from</th><th>text</th></tr></thead>
<tbody>
{%- for window in windows %}
<tr><td class="n">{{ loop.index }}</td>
<td class="from">{{ window.pieces[0][0] }}<br><small>{{ window.pieces[0][1] }}</small>
{%- if window.pieces | length > 1 %}
<details><summary>and {{ window.pieces | length - 1 }} more</summary><ul>
{%- for document, tokens in window.pieces[1:] %}
<li>{{ document }} <small>{{ tokens }}</small></li>
{%- endfor %}
</ul></details>
{%- endif %}</td>
<td class="text" dir="auto">{{ window.text }}</td></tr>
{%- endfor %}
</tbody>
</table>
</body>
</html>
"""


def page(
    title: str,
    image: tuple[str, str],
    calibration: CalibrationSet,
    pool: TokenPool,
    tokenizer: Any,
) -> str:
    """Return the page: the picture (its data URI and a text for it), the measures, the windows."""
    windows = [
        {"text": beginning(window, tokenizer), "pieces": pieces(spans, pool, calibration.notes)}
        for window, spans in zip(calibration.windows, calibration.spans, strict=True)
    ]
    notes = calibration.notes
    measures = [
        (name, form.format(notes[key] * (100 if "%" in form else 1)))
        for key, (name, form) in MEASURES.items()
        if key in notes
    ]
    return (
        Environment(autoescape=True)
        .from_string(PAGE)
        .render(
            title=title,
            subtitle=f"Digest {calibration.digest}. Documents, tokens and clusters are counted "
            "from 0, as in calibration/selection.json and the picture; separators between "
            "documents are tokens too.",
            image=image[0],
            alt=image[1],
            measures=measures,
            characters=CHARACTERS,
            windows=windows,
        )
    )


def beginning(window: NDArray[np.int32], tokenizer: Any) -> str:
    """Return the first characters of a window; a character cut at its edge shows as �."""
    text: str = tokenizer.decode(window[:TOKENS].tolist(), clean_up_tokenization_spaces=False)
    return text[:CHARACTERS]


def pieces(
    spans: Sequence[Span], pool: TokenPool, notes: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Say of each span which documents it is from, in which clusters, and which tokens it has."""
    clusters = notes.get("document_clusters", {})
    found = []
    if not spans:
        return [("no document", "written by the method")]
    for span in spans:
        last = int(np.searchsorted(pool.starts, span.stop, side="left")) - 1
        name = f"document {span.document:,}"
        if last > span.document:
            name = f"documents {span.document:,} to {last:,}"
        elif str(span.document) in clusters:
            name += f", cluster {clusters[str(span.document)]}"
        found.append((name, f"tokens {span.start:,} to {span.stop - 1:,}"))
    return found
