"""How the page looks: one style sheet, light and dark, screen and paper; no fonts or images from elsewhere."""

from __future__ import annotations

from typing import Final

SPLIT_COLORS: Final = 8
"""Colours that splits have before they repeat."""

STYLE: Final = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #14181f; --soft: #565f6d; --faint: #8a93a1; --line: #e2e5ea; --rule: #eef0f3;
  --accent: #2a6fc4; --heat-low: #eaf2fc; --heat-high: #0f4a94; --on-hot: #ffffff; --on-mild: #123256;
  --warn: #a85a00; --good: #1a7f4b; --bond: #9aa3b0; --cell: #aeb6c2;
  --c0: #2a78d6; --c1: #d95926; --c2: #199e70; --c3: #7a5cc9; --c4: #c98500; --c5: #d0457f;
  --c6: #2b8f9c; --c7: #70777f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #101317; --card: #181c22; --ink: #e9edf2; --soft: #a4adba; --faint: #747e8c; --line: #2a3038;
    --rule: #22272e;
    --accent: #7fb2f0; --heat-low: #1d2a3b; --heat-high: #8fc0fa; --on-hot: #0c1a2b; --on-mild: #d3e4fa;
    --warn: #e8a23d; --good: #58c08a; --bond: #6b7583; --cell: #4d5663;
    --c0: #4a90e2; --c1: #ee7a48; --c2: #35b888; --c3: #a08ae6; --c4: #d9a02e; --c5: #e5709e;
    --c6: #4fb6c3; --c7: #98a1ab;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 4rem; }
body {
  margin: 0; background: var(--page); color: var(--ink); line-height: 1.5; font-size: 15px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif;
}
main, header > div, nav > div, footer > div { max-width: 1180px; margin: 0 auto; padding: 0 28px; }
header { padding: 44px 0 26px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 6px; font-weight: 680; }
h2 { font-size: 23px; letter-spacing: -0.015em; margin: 0; font-weight: 660; }
h3 { font-size: 15px; margin: 0 0 12px; font-weight: 620; }
h4 { font-size: 14px; margin: 0; font-weight: 600; }
p { margin: 0 0 10px; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.lead, .note { color: var(--soft); }
.note { font-size: 13px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px; margin: 24px 0 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 13px 16px 12px; }
.tile b { display: block; font-size: 25px; font-weight: 640; letter-spacing: -0.02em; line-height: 1.25; }
.tile span { color: var(--soft); font-size: 13px; }
nav {
  position: sticky; top: 0; z-index: 5; background: color-mix(in srgb, var(--page) 88%, transparent);
  backdrop-filter: blur(8px); border-bottom: 1px solid var(--line);
}
nav > div { display: flex; flex-wrap: wrap; gap: 4px 20px; padding-top: 10px; padding-bottom: 10px; font-size: 14px; }
section { padding: 34px 0 8px; }
section + section { border-top: 1px solid var(--line); margin-top: 30px; }
.heading { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 14px; margin-bottom: 18px; }
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 18px 20px; margin: 0 0 16px;
  min-width: 0;
}
.grid2 { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(430px, 100%), 1fr)); gap: 16px; }
.grid2 .card { margin: 0; padding: 16px 18px 12px; display: flex; flex-direction: column; }
.grid2 .card svg { margin-top: auto; }
.grid2 { margin-bottom: 16px; }
.card .note { margin: 2px 0 6px; min-height: 1.5em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 560; color: var(--soft); font-size: 13px; white-space: nowrap; }
th, td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
thead th { border-bottom: 1px solid var(--line); }
.number { text-align: right; }
td.number { white-space: nowrap; }
.number + :is(td, th):not(.number) { padding-left: 18px; }
.key { display: inline-flex; align-items: center; gap: 7px; white-space: nowrap; }
.key i { width: 11px; height: 11px; border-radius: 3px; display: inline-block; }
.keys { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13.5px; color: var(--soft); }
.good { color: var(--good); } .warn { color: var(--warn); }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-family: inherit; }
svg.definitions { position: absolute; width: 0; height: 0; }
.chart .tick { font-size: 11px; font-variant-numeric: tabular-nums; }
.chart .grid { stroke: var(--rule); stroke-width: 1; }
.chart .axis { stroke: var(--line); stroke-width: 1; }
.chart .mark { stroke: var(--faint); stroke-width: 1; stroke-dasharray: 3 3; }
.chart .bar { opacity: 0.82; }
.chart .outline { fill: none; stroke-width: 1.7; stroke-linejoin: round; }
.chart .hover { fill: transparent; }
.chart .hover:hover { fill: color-mix(in srgb, var(--ink) 7%, transparent); }
.elements { max-width: 900px; margin: 0 auto; }
.elements .symbol { font-size: 15px; font-weight: 600; text-anchor: middle; }
.elements .count { font-size: 10.5px; text-anchor: middle; font-variant-numeric: tabular-nums; }
.elements .absent rect { fill: none; stroke: var(--rule); }
.elements .absent .symbol { fill: var(--faint); opacity: 0.55; font-weight: 400; font-size: 13px; }
.elements .present rect, .elements .step { fill: color-mix(in oklab, var(--heat-high) var(--heat), var(--heat-low)); }
.elements .present:hover rect { stroke: var(--ink); stroke-width: 1.5; }
.elements .hot text { fill: var(--on-hot); } .elements .mild text { fill: var(--on-mild); }
.elements .legend { font-size: 12px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(165px, 1fr)); gap: 18px 16px; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: 13px; line-height: 1.4; margin-top: 6px; text-align: center; }
figcaption b { font-weight: 600; overflow-wrap: anywhere; }
figcaption span { display: block; color: var(--faint); font-size: 11.5px; overflow-wrap: anywhere; }
.picture .atom { stroke: color-mix(in srgb, #000 45%, transparent); stroke-width: 0.5; }
.picture .fog { fill: var(--card); }
.picture .bond { stroke: var(--bond); stroke-linecap: round; }
.picture .cell { stroke: var(--cell); stroke-width: 1; }
dl { display: grid; grid-template-columns: minmax(110px, max-content) 1fr; gap: 7px 22px; margin: 0; font-size: 14px; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
code { font-family: ui-monospace, "SF Mono", "DejaVu Sans Mono", Menlo, monospace; font-size: 12.5px; }
details { margin-top: 14px; } summary { cursor: pointer; color: var(--soft); font-size: 14px; }
details table { margin-top: 8px; } details code { overflow-wrap: anywhere; }
footer {
  color: var(--faint); font-size: 13px; padding: 26px 0 50px; margin-top: 34px; border-top: 1px solid var(--line);
}
@media (max-width: 620px) {
  main, header > div, nav > div, footer > div { padding: 0 16px; }
  dl { grid-template-columns: 1fr; gap: 2px; } dd { margin-bottom: 8px; }
}
@media print { nav { position: static; } .card, figure { break-inside: avoid; } body { background: #fff; } }
""" + "".join(
    f".c{k}.bar {{ fill: var(--c{k}); }} .c{k}.outline {{ stroke: var(--c{k}); }}"
    f".key .c{k} {{ background: var(--c{k}); }}\n"
    for k in range(SPLIT_COLORS)
)
