"""A study as one HTML page that opens offline: text, law table, figures; nothing is fetched.

Plotly's script is in the page once (about 5 MB).  The page's own policy forbids every request, so
that it stays true of figures still to come.  Everything written by others is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd
from plotly.offline import get_plotlyjs

from workbench.app.figures import CONFIG
from workbench.app.readings import number
from workbench.studies.study import VERDICTS, Content, Picture, Study, closing_line, law_table

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
_STYLE = """
:root { --page: #f5f7f9; --panel: #fff; --ink: #1b2430; --faint: #5d6b7a; --line: #e1e6ec;
  --blue: #1f6fb2; --red: #a31621; --grey: #75818e; color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 Inter, system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 6px; letter-spacing: -.01em; }
h2 { font-size: 18px; margin: 40px 0 10px; }
h3 { font-size: 15px; margin: 0 0 2px; }
p { margin: 0 0 10px; }
.faint, .caption, dt { color: var(--faint); }
.banner { background: #fff3e0; border: 1px solid #f0c48a; border-radius: 8px; padding: 10px 14px;
  margin: 16px 0; }
.panel { background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: 16px 18px; margin: 0 0 18px; }
.caption { font-size: 13px; margin: 0 0 8px; max-width: 85ch; }
.figure { width: 100%; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13px;
  font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--faint); white-space: nowrap; }
th, td { padding: 8px 10px 8px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.says { min-width: 300px; }
td.control { min-width: 130px; }
td.number, th.number { text-align: right; }
td.number, th.number, td.short { white-space: nowrap; }
.statistic { color: var(--faint); font-size: 12px; }
.verdict { display: inline-block; white-space: nowrap; border-radius: 10px; padding: 0 9px;
  font-size: 12px; font-weight: 600; color: #fff; background: var(--grey); }
.verdict.held { background: var(--blue); }
.verdict.not-held { background: var(--red); }
a { color: var(--blue); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 0;
  font-size: 13px; }
dd { margin: 0; overflow-wrap: anywhere; }
details pre { overflow-x: auto; font-size: 12px; }
li { margin-bottom: 6px; }
.closing { font-weight: 600; font-size: 16px; margin-top: 28px; }
"""
RULE = (
    '<p class="caption">A law is held when its value meets the mark and the control does not: a '
    "control that meets it too would show that the number says nothing. Every value is that of the "
    "worst run, every null that of the control that comes nearest to the mark. Verdicts are "
    "computed.</p>"
)
_DRAW = """
for (const place of document.querySelectorAll('.figure')) {
  const drawn = JSON.parse(document.getElementById(place.id + '-data').textContent);
  Plotly.newPlot(place, drawn.data, drawn.layout, CONFIG);
}
"""


def page(study: Study, content: Content, about: Mapping[str, Any]) -> str:
    """The report; `about` is what `study.json` holds."""
    line = closing_line(content.findings)
    banner = f'<p class="banner">{escape(content.banner)}</p>' if content.banner else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in content.notes)
    body = [
        f"<h1>{escape(study.question)}</h1>",
        f'<p class="faint">Study {escape(study.name)}, after {escape(study.paper)}</p>',
        banner,
        f'<p class="closing">{escape(line)}</p>',
        "<h2>Laws</h2>",
        RULE,
        laws(law_table(content.findings)),
        "<h2>Figures</h2>",
        *(_figure(picture) for picture in content.pictures),
        f"<h2>What to know about these numbers</h2><ul>{notes}</ul>" if notes else "",
        "<h2>Where they come from</h2>",
        _origin(about),
        f'<p class="closing">{escape(line)}</p>',
    ]
    script = _DRAW.replace("CONFIG", json.dumps(CONFIG))
    scripts = f"<script>{get_plotlyjs()}</script>\n<script>{script}</script>"
    return document(f"{study.name}: {line}", body, scripts)


def document(title: str, body: Sequence[str], scripts: str = "") -> str:
    """A whole page of these parts, with the style and the policy of reports."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main>\n{scripts}</body></html>\n"
    )


def laws(table: pd.DataFrame) -> str:
    """The law table (`study.law_table`) as HTML."""
    head = (
        '<tr><th>verdict</th><th>law</th><th class="number">value</th><th>mark</th>'
        '<th class="number">null</th><th>control</th><th class="number">n</th>'
        "<th>required</th><th>source</th></tr>"
    )
    rows = "".join(_law(row) for row in table.to_dict("records"))
    return f'<div class="panel scroll"><table>{head}{rows}</table></div>'


def _law(law: Mapping[Any, Any]) -> str:
    verdict = law["verdict"]
    assert verdict in VERDICTS
    sign, _, bound = law["mark"].partition(" ")
    return (
        f'<tr><td><span class="verdict {verdict.replace(" ", "-")}">{verdict}</span></td>'
        f'<td class="says"><b>{escape(law["law"])}</b><br>{escape(law["says"])}'
        f'<br><span class="statistic">{escape(law["statistic"])}</span></td>'
        f'<td class="number">{number(law["value"])}</td>'
        f'<td class="short">{escape(sign)} {number(float(bound))}</td>'
        f'<td class="number">{number(law["null"])}</td>'
        f'<td class="control">{escape(law["control"])}</td>'
        f'<td class="number">{law["n"] or "–"}</td><td>{"yes" if law["required"] else "no"}</td>'
        f"<td>{escape(law['source'])}</td></tr>"
    )


def _figure(picture: Picture) -> str:
    layout: Any = picture.figure.layout
    height = layout.height or 380
    name = escape(picture.name)
    # Plotly's JSON has no "<": it cannot end the script it stands in.
    data = str(picture.figure.to_json())
    return (
        f'<div class="panel"><h3>{escape(picture.title)}</h3>'
        f'<p class="caption">{escape(picture.caption)}</p>'
        f'<div class="figure" id="figure-{name}" style="height:{height}px"></div>'
        f'<script type="application/json" id="figure-{name}-data">{data}</script></div>'
    )


def _origin(about: Mapping[str, Any]) -> str:
    seconds = about["seconds"]
    earlier = ", after an earlier start" if about["continued"] else ""
    rows = {
        "command": about["command"] or "from Python",
        "made": about["created"],
        "took": f"{seconds['wall']:,} s, {seconds['cpu']:,} CPU seconds{earlier}",
        **{name: str(value) for name, value in about["facts"].items()},
        "seeds": ", ".join(map(str, about["seeds"])),
        "versions": ", ".join(f"{name} {number}" for name, number in about["versions"].items()),
        "revision": about["revision"] or "not a checkout",
        "settings": about["key"],
    }
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in rows.items())
    config = escape(json.dumps(about["config"], indent=1, ensure_ascii=False))
    return (
        f'<div class="panel"><dl>{listed}</dl>'
        f"<details><summary>every setting</summary><pre>{config}</pre></details></div>"
    )
