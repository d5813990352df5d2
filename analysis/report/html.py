"""`report.html`: one file with everything in it, for MLflow's artifact viewer and for paper."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from jinja2 import Environment
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from analysis.report.sentences import Section
from analysis.report.tables import Table
from colazero.figures import RC

TITLES = {
    "settings": "The settings side by side",
    "seeds": "Every observation",
    "differences": "Differences and the intervals that decided",
    "looks": "The comparisons over seeds, look by look",
    "windows": "Where in the text the methods differ",
    "budget": "Where the noise comes from",
    "time": "Time against quality",
    "cv": "Spread",
}

# No scripts and nothing from elsewhere: MLflow shows the file in a sandboxed frame.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: #1a1a1a;
  background: #fff; max-width: 60rem; margin: 0 auto; padding: 1.2rem 1.2rem 3rem;
  overflow-wrap: break-word; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; margin: 1.2rem 0 .2rem; }
p { margin: .4rem 0; }
.sub { color: #555; }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #555; padding-bottom: .3rem; }
th, td { padding: .25rem .45rem; border-bottom: 1px solid #ddd; text-align: right;
  vertical-align: top; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
.l { text-align: left; }
td { white-space: nowrap; }
td.l { white-space: normal; }
table.many { font-size: .7rem; }
table.many td { white-space: normal; }
table.many th { overflow-wrap: normal; }
.facts td { white-space: normal; overflow-wrap: anywhere; text-align: left; }
figure { margin: 1rem 0; }
img { width: 100%; max-width: 46rem; height: auto; }
.warn { border-left: 4px solid #D55E00; padding: .1rem .8rem; background: #fdf3ec; }
@media screen and (max-width: 60rem) {  /* a row becomes a block: nothing to scroll sideways */
  thead { display: none; }
  table, tbody, tr, td { display: block; width: auto; }
  tr { border-bottom: 2px solid #888; padding: .3rem 0; }
  td, td.l { display: flex; justify-content: space-between; gap: 1rem; white-space: normal;
    text-align: right; border-bottom: 1px solid #eee; overflow-wrap: anywhere; }
  td::before { content: attr(data-name); color: #555; text-align: left; flex: 0 0 45%; }
}
@media print {
  body { font-size: 10pt; max-width: none; padding: 0; }
  h2, h3 { break-after: avoid; }
  tr, li, img { break-inside: avoid; }
  figure { margin: .5rem 0; }
  img { max-height: 240mm; width: auto; max-width: 78%; }
  table, table.many { font-size: 7pt; }
  th, td, td.l { padding: .12rem .25rem; white-space: normal; }
}
@page { size: A4; margin: 16mm; }
</style>
</head>
<body>
{%- macro grid(table, kind="") %}
<table class="{{ kind }}{{ ' many' if table.header | length > 8 }}">
<thead><tr>
{%- for cell in table.header %}<th{% if loop.index <= table.left %} class="l"{% endif %}>
{{- cell }}</th>{% endfor -%}
</tr></thead>
<tbody>
{%- for row in table.rows %}
<tr>{% for cell in row %}<td{% if loop.index <= table.left %} class="l"{% endif %} data-name="
{{- table.header[loop.index0] }}">{{ cell }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table>
{%- endmacro %}
<h1>{{ title }}</h1>
<p class="sub">{{ subtitle }}</p>
<h2>What these runs show</h2>
<ul>
{%- for line in key_lines %}
<li>{{ line }}</li>
{%- endfor %}
</ul>
{{ grid(methods) }}
{%- if primary.rows %}
<h2>Comparisons: the primary family</h2>
<p>The interval is the one that decided. To its right, Welch's test on exactly these windows.</p>
{{ grid(primary) }}
{%- endif %}
{%- if exploratory.rows %}
<h2>Comparisons: exploratory</h2>
<p>All other pairs, a family of its own. What is found here is to be tested on other seeds.</p>
{{ grid(exploratory) }}
{%- endif %}
{%- if looks.rows %}
<h2>Looks</h2>
<p>Each comparison as it stood at each look, its interval at the nominal level of that look.</p>
{{ grid(looks) }}
{%- endif %}
{%- if budget.rows %}
<h2>Variance budget</h2>
<p>What one value is made of, and what share each source has in the variance of a difference between
two methods with the average of these designs.</p>
{{ grid(budget) }}
{%- endif %}
{%- if metrics.rows %}
<h2>Which metric sees most</h2>
<p>Seeds a method with which Welch's test, at Holm's first step, would find in four suites of five a
difference as large as the one estimated on exactly these windows; the range is that of the
estimate's 95 % interval. It compares metrics. It is no plan: what is seen is not what is true.</p>
{{ grid(metrics) }}
{%- endif %}
<h2>Every seed</h2>
{{ grid(seeds) }}
{%- if measures.rows %}
<h2>Calibration sets</h2>
{{ grid(measures) }}
{%- endif %}
{%- if items.rows %}
<h2>Downstream tasks, item by item</h2>
<p>Each two models on the same items: McNemar's exact test of how often only one of them is right,
Holm-adjusted over this table. It is about these checkpoints, the first seed of each method; what
other seeds would give is not in it.</p>
{{ grid(items) }}
{%- endif %}
<h2>Figures</h2>
{%- for name, image, alt in figures %}
<figure id="{{ name }}">
<h3>{{ titles.get(name.partition("_")[0], name) }}</h3>
<img src="{{ image }}" alt="{{ alt }}">
</figure>
{%- else %}
<p>No run has a result to show.</p>
{%- endfor %}
<h2>Results in words</h2>
{%- for section in sections %}
<section{% if section.title == "Runs without a result" %} class="warn"{% endif %}>
<h3>{{ section.title }}</h3>
{%- for paragraph in section.paragraphs %}
<p>{{ paragraph | bold }}</p>
{%- endfor %}
</section>
{%- endfor %}
{%- if own.rows %}
<h2>Further statistics</h2>
{{ grid(own) }}
{%- endif %}
<h2>Settings</h2>
{{ grid(facts, "facts") }}
</body>
</html>
"""


def page(
    title: str,
    subtitle: str,
    key_lines: Sequence[str],
    tables: Mapping[str, Table],
    images: Mapping[str, tuple[bytes, str]],
    sections: Sequence[Section],
) -> str:
    """Return the report as one HTML page.

    tables: `methods`, `primary`, `exploratory`, `looks`, `budget`, `metrics`, `seeds`, `measures`,
    `items`, `own` and `facts`.
    images: name → SVG and caption.
    """
    environment = Environment(autoescape=True)
    environment.filters["bold"] = _bold
    return environment.from_string(PAGE).render(
        title=title,
        subtitle=subtitle,
        key_lines=key_lines,
        figures=[(name, _data_uri(content), text) for name, (content, text) in images.items()],
        titles=TITLES,
        sections=sections,
        **tables,
    )


def svg(figure: Figure) -> bytes:
    """Return a figure as SVG, letters as outlines; the same figure gives the same bytes."""
    return _saved(figure, "svg", metadata={"Date": None})


def png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    return _saved(figure, "png")


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    with mpl.rc_context(RC):
        figure.savefig(out, format=kind, **options)
        figure.set_layout_engine("none")  # it is laid out; once more takes as long as drawing
    return out.getvalue()


def _data_uri(content: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(content).decode()


def _bold(text: str) -> Markup:
    """Turn **x** into bold; everything else is escaped."""
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", str(escape(text))))
