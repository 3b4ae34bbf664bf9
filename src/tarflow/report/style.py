"""The style sheet of the report: two themes of the same names, and a layout from 320 pixels up."""

from __future__ import annotations

from string import Template

# Text on every ground it stands on has a contrast of 4.5 or more, lines and marks 3 or more (WCAG AA): a test computes
# them. The three curves differ in lightness too, and besides by dots and dashes.
THEMES = {
    "light": {
        "ground": "#fbfaf7",
        "panel": "#ffffff",
        "text": "#1d2025",
        "muted": "#585d66",
        "rule": "#d9d6ce",
        "link": "#0a5a9c",
        "first": "#2166ac",
        "second": "#b2182b",
        "third": "#5c6370",
        "block": "#dfeaf5",
        "part": "#eeece5",
        "latent": "#f7e3df",
    },
    "dark": {
        "ground": "#15171b",
        "panel": "#1c1f24",
        "text": "#e8e6e1",
        "muted": "#a5abb5",
        "rule": "#383c44",
        "link": "#8cc2f5",
        "first": "#7db7ee",
        "second": "#f2907f",
        "third": "#a5abb5",
        "block": "#22364a",
        "part": "#2a2d33",
        "latent": "#472a2b",
    },
}
# (what is drawn, on which grounds): text needs 4.5, marks 3.
TEXT_ON = {
    "text": ("ground", "panel", "block", "part", "latent"),
    "muted": ("ground", "panel"),
    "link": ("ground", "panel"),
}
MARKS_ON = {"first": ("panel", "block"), "second": ("panel",), "third": ("panel",)}

_SHEET = Template("""
:root { color-scheme: light dark; $light }
@media (prefers-color-scheme: dark) { :root { $dark } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--ground); color: var(--text);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header, nav, main, footer { max-width: 62rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 3rem; }
h1 { font-size: clamp(1.75rem, 5vw, 2.5rem); line-height: 1.15; letter-spacing: -0.02em; margin: 0 0 .5rem; }
h2 { font-size: 1.4rem; line-height: 1.25; letter-spacing: -0.01em; margin: 3.25rem 0 .75rem; }
h3 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; }
h2.run { font-size: 1.75rem; border-top: 3px solid var(--text); padding-top: .75rem; margin-top: 4.5rem; }
p { max-width: 42rem; margin: .75rem 0; overflow-wrap: anywhere; }
.lead, figcaption, caption, dt, footer { color: var(--muted); }
a { color: var(--link); text-underline-offset: .15em; }
a:focus-visible, .scroll:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -100vw; }
.skip:focus { left: 1rem; top: .5rem; background: var(--panel); padding: .5rem; }
nav { margin-top: 1.5rem; font-size: .9375rem; }
nav ul { list-style: none; margin: .25rem 0 .75rem; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; }
nav .chapter { margin: 1rem 0 0; font-weight: 600; }
nav a { display: inline-block; padding: .2rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.5rem 0; }
.cards div { background: var(--panel); border: 1px solid var(--rule); border-radius: 8px; padding: .7rem .9rem; }
dt { font-size: .8125rem; line-height: 1.35; }
dd { margin: .15rem 0 0; font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums; }
figure { margin: 1.25rem 0 1.75rem; }
figcaption { font-size: .875rem; line-height: 1.5; margin-top: .7rem; max-width: 46rem; }
.strips { display: grid; grid-template-columns: 7rem minmax(0, 1fr); gap: .35rem .5rem; align-items: center; }
.label { font-size: .875rem; line-height: 1.3; overflow-wrap: anywhere; }
img { display: block; max-width: 100%; height: auto; }
.pixels { image-rendering: pixelated; }
.drawings { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem;
  align-items: start; }
.chart { display: block; width: 100%; max-width: 36rem; height: auto; background: var(--panel);
  border: 1px solid var(--rule); border-radius: 8px; }
svg text { fill: var(--text); font-size: 13px; }
svg .name { fill: var(--muted); }
svg .strong { font-weight: 600; font-size: 14px; }
.gridline { stroke: var(--rule); }
.axis, .arrow { stroke: var(--third); fill: none; }
.line { fill: none; stroke-width: 1.75; stroke-linejoin: round; }
.line.third { stroke-dasharray: 6 4; }
.first { stroke: var(--first); } .second { stroke: var(--second); } .third { stroke: var(--third); }
.dot.first { fill: var(--first); } .dot.second { fill: var(--second); }
rect.block, rect.part, rect.latent, .patch { stroke: var(--third); }
rect.block, .patch { fill: var(--block); } rect.part { fill: var(--part); } rect.latent { fill: var(--latent); }
.token { fill: var(--first); }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .9375rem; line-height: 1.45; }
caption { text-align: left; font-size: .875rem; padding-bottom: .4rem; }
th, td { text-align: left; vertical-align: top; padding: .45rem .9rem .45rem 0; border-bottom: 1px solid var(--rule);
  font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
th { font-weight: 600; } thead th { font-size: .8125rem; color: var(--muted); } tbody th { min-width: 6.5rem; }
.numbers td { white-space: nowrap; }
footer { margin-top: 4rem; padding-top: 1rem; padding-bottom: 3rem; font-size: .875rem; }
@media (max-width: 36rem) {
  header { padding-top: 1.75rem; } h2 { margin-top: 2.5rem; }
  .strips { grid-template-columns: minmax(0, 1fr); gap: .15rem; } .strips img { margin-bottom: .5rem; }
  .cards { grid-template-columns: 1fr 1fr; } .cards div { padding: .6rem .7rem; }
}
@media print { nav, .skip { display: none; } section { break-inside: avoid-page; } }
""")


def style_sheet() -> str:
    """The whole sheet, with the colours of both themes as variables."""
    variables = {
        theme: " ".join(f"--{name}: {value};" for name, value in colours.items()) for theme, colours in THEMES.items()
    }
    return _SHEET.substitute(variables).strip()
