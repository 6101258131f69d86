"""The report as one HTML page: no scripts, no network; light and dark, wide and narrow."""

import base64
from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

from eblvm.benchmarks.statistics import LEGEND
from eblvm.benchmarks.suite import Suite

if TYPE_CHECKING:
    from eblvm.benchmarks.report import Section

__all__ = ["page"]

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --soft: #6b6b70; --line: #d8d8dc;
  --best: #e8f1e4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececee; --soft: #9a9aa0; --line: #3a3a3e; --best: #24371f; }
}
* { box-sizing: border-box; }
body { color: var(--ink); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 68rem;
  padding: 1.5rem 1rem 4rem; }
h1, h2 { line-height: 1.2; }
h2 { border-top: 1px solid var(--line); margin-top: 3rem; padding-top: 1.5rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .7rem; text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.best { background: var(--best); font-weight: 600; }
td.tied::after { content: " ≈"; color: var(--soft); }
td.untested::after { content: " ?"; color: var(--soft); }
td.other::after { content: " †"; color: var(--soft); }
.figures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.samples { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); }
figure { margin: 0; max-width: 36rem; }
figure img { height: auto; max-width: 100%; width: 100%; }
figcaption, .soft, summary { color: var(--soft); font-size: .85rem; }
pre { font-size: .8rem; overflow-x: auto; white-space: pre-wrap; }
ul { padding-left: 1.2rem; }
li, pre { overflow-wrap: anywhere; }
"""


def page(suites: Sequence[Suite], sections: Sequence["Section"]) -> str:
    """The whole page.

    Arguments:
        suites: What was run.
        sections: What was found.
    """
    return "\n".join(parts(suites, sections)) + "\n"


def parts(suites: Sequence[Suite], sections: Sequence["Section"]) -> Iterator[str]:
    """The page, piece by piece."""
    title = escape(", ".join(suite.name for suite in suites))
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield f"<title>{title}</title>"
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>"
    for suite in suites:
        if suite.about:
            yield f"<p>{escape(suite.about)}</p>"
    yield f'<p class="soft">Shaded: the best mean. {escape(LEGEND)}</p>'
    links = (f'<a href="#{escape(s.name, quote=True)}">{escape(s.title)}</a>' for s in sections)
    yield f"<nav>{''.join(links)}</nav>"
    for section in sections:
        yield from one(section)
    environments = dict.fromkeys(e for section in sections for e in section.environments())
    yield "<h2>Made on</h2>\n<ul>"
    yield from (f"<li>{escape(environment)}</li>" for environment in environments)
    yield "</ul>\n</body>\n</html>"


def one(section: "Section") -> Iterator[str]:
    """A table, its notes and its pictures."""
    name = escape(section.name, quote=True)
    yield f'<section id="{name}">\n<h2>{escape(section.title)}</h2>'
    yield '<div class="scroll"><table>'
    yield "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in section.header) + "</tr>"
    for row in section.rows():
        cells = (f'<td class="{kind}">{escape(text)}</td>' for text, kind in row)
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</table></div>"
    if published := section.published():
        yield '<h3>Published</h3>\n<div class="scroll"><table>'
        header = ["method", *section.part.table.metrics, "source"]
        yield "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in header) + "</tr>"
        for row in published:
            yield "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        yield "</table></div>"
    for record in section.part.failed:
        yield (
            f"<details><summary>failed: {escape(record['id'])}</summary>"
            f"<pre>{escape(record.get('error') or 'no reason')}</pre></details>"
        )
    yield '<div class="figures">'
    for what, svg in section.figures.items():
        url = "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
        yield f'<figure><img alt="{name}: {what}" src="{url}"></figure>'
    yield '</div>\n<div class="samples">'
    for label, path in section.samples:
        if path.suffix == ".png":
            url = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
            alt = escape(f"samples of {label}", quote=True)
            yield f'<figure><img alt="{alt}" src="{url}">'
            yield f"<figcaption>{escape(label)}</figcaption></figure>"
    yield "</div>"
    for label, path in section.samples:
        if path.suffix == ".txt":
            text = escape("\n".join(path.read_text(encoding="utf-8").splitlines()[:12]))
            yield f"<figure><figcaption>{escape(label)}</figcaption><pre>{text}</pre></figure>"
    yield "<details><summary>Tests, budgets, protocols</summary>\n<ul>"
    yield from (f"<li>{escape(said)}</li>" for said in (*section.tests(), *section.notes()))
    yield "</ul></details>\n</section>"
