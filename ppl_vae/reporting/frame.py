"""The frame of a page: its head, its style in light and dark, and what the browser may do."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from ppl_vae.plots import DARK_INK, DARK_PAPER
from ppl_vae.reporting.markup import element, joined, markup

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2024; --soft: #57606a; --card: #f5f7f9;
  --line: #d5dbe1; --accent: #00578a; --warn: #8f3e00; }
@media screen and (prefers-color-scheme: dark) {
  :root { --paper: DARK_PAPER; --ink: DARK_INK; --soft: #a5aeb8; --card: #21262c; --line: #3a424b;
    --accent: #7cc4f5; --warn: #ffb27a; } }
@media print { :root { color-scheme: light; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
main, header, footer { max-width: 70rem; margin: 0 auto; padding: 0 1.2rem; }
header { padding-top: 1.6rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.2rem 0 .6rem; padding-bottom: .2rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 0 0 .3rem; }
p, li, dd, dt, figcaption { overflow-wrap: anywhere; }
p, ul { max-width: 46rem; margin: .5rem 0; }
ul { padding-left: 1.2rem; }
.about, footer, figcaption, .soft { color: var(--soft); }
.headline { font-size: 1.2rem; font-weight: 600; }
.warn { border-left: 4px solid var(--warn); padding-left: .7rem; }
.warn b { color: var(--warn); }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr));
  margin: .8rem 0; }
.card { background: var(--card); border-radius: 8px; padding: .9rem 1rem; min-width: 0; }
.card p { margin: .3rem 0; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem;
  overflow-x: auto; font-size: .85rem; margin: .5rem 0; }
code { font-size: .92em; }
pre code { font-size: inherit; }
pre, code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
pre.type { user-select: all; -webkit-user-select: all; cursor: copy; white-space: pre-wrap;
  overflow-wrap: anywhere; background: var(--paper); }
.figures { columns: 28rem 2; column-gap: 1.6rem; }
.figures > * { break-inside: avoid; margin: 0 0 1.8rem; }
.beside { display: flex; flex-wrap: wrap; gap: 1.6rem; align-items: flex-start; }
.beside > * { min-width: 0; max-width: 100%; flex: 1 1 20rem; }
.beside > div { flex: 2 1 38rem; }
figure { margin: 0; min-width: 0; }
figure img { max-width: 100%; max-height: 38rem; width: auto; height: auto; display: block;
  border-radius: 4px; }
figure.white img { background: #fff; }
figcaption { margin-top: .4rem; max-width: 46rem; }
.scroll { overflow: auto; max-height: 26rem; margin: .6rem 0; border: 1px solid var(--line);
  border-radius: 6px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.scroll table { width: 100%; font-size: .85rem; }
.scroll th, .scroll td { padding: .3rem .55rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
.scroll th:first-child { text-align: left; }
.scroll thead th { position: sticky; top: 0; background: var(--card); white-space: normal;
  vertical-align: bottom; }
.scroll tbody th { font-weight: 500; }
.scroll .words { text-align: left; }
.scroll td.words { white-space: normal; min-width: 14rem; }
.explained { width: 100%; }
.explained tr { border-bottom: 1px solid var(--line); vertical-align: baseline; }
.explained th { text-align: left; font-weight: 600; padding: .4rem 1rem .4rem 0; }
.explained td { padding: .4rem 0; }
.explained .value { white-space: nowrap; padding-right: 1.4rem; }
.explained .sentence { color: var(--soft); width: 60%; }
details { margin: .6rem 0; }
summary { cursor: pointer; font-weight: 600; color: var(--accent); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: .6rem 0; }
dt { font-weight: 600; }
dd { margin: 0; min-width: 0; }
a { color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
footer { margin-top: 2.5rem; padding-top: .8rem; padding-bottom: 2rem; font-size: .9rem; }
.plane { width: 100%; }
.plane > div { width: 100%; height: 30rem; }
@media (max-width: 44rem) {
  main, header, footer { padding-left: .8rem; padding-right: .8rem; }
  h1 { font-size: 1.35rem; }
  .explained, .explained tbody { display: block; }
  .explained tr { display: grid; grid-template-columns: 1fr auto; padding: .4rem 0; column-gap: 1rem; }
  .explained th, .explained td { padding: 0; }
  .explained .value { padding: 0; }
  .explained .sentence { grid-column: 1 / -1; width: auto; font-size: .9rem; }
  .explained .value { white-space: normal; text-align: right; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
}
@media print {
  body { font-size: 10pt; }
  .scroll { overflow: visible; max-height: none; border: 0; }
  .scroll th, .scroll td { white-space: normal; padding: .15rem .4rem; }
  figure, .card, .explained tr { break-inside: avoid; }
  h2 { break-after: avoid; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
}
"""


def framed(
    title: str,
    header: object,
    parts: Sequence[object],
    footer: object,
    weights: str | None = None,
    scripts: Sequence[str] = (),
) -> str:
    """A page.

    Args:
        title: Its title.
        header: What stands above.
        parts: What it is of.
        footer: What stands below.
        weights: The digest of the weights that it is of.
        scripts: Programs of ours that it runs, at its end. It runs no others, and loads nothing.
    """
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts) or "'none'"
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"
    known = "" if weights is None else f'<meta name="weights_sha256" content="{markup(weights)}">\n'
    style = _STYLE.replace("DARK_PAPER", DARK_PAPER).replace("DARK_INK", DARK_INK)
    programs = "".join(f"<script>{script}</script>\n" for script in scripts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{known}<title>{markup(title)}</title>\n"
        f'<link rel="icon" href="data:,">\n<style>{style}</style>\n</head>\n<body>\n'
        f"{element('header', header)}\n{element('main', joined(parts))}\n{element('footer', footer)}\n"
        f"{programs}</body>\n</html>\n"
    )


def _digest(script: str) -> str:
    """The digest by which the page's policy knows a script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
