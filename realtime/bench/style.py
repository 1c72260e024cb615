"""The look of the report, light and dark."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ink: #1b1d21; --soft: #5c626c; --paper: #fbfaf7; --card: #fff;
  --rule: #e1ded6; --c0: #0b6e63; --c1: #b4531a; --c2: #5b54b8; --shade: #f3d9a8; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececea; --soft: #a3a8b0; --paper: #16181b;
  --card: #1f2226; --rule: #34383e; --c0: #4cc3b1; --c1: #f0955a; --c2: #a29cf0;
  --shade: #57462a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 20px 16px 48px; max-width: 1080px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 24px; line-height: 1.25; }
h2 { margin: 32px 0 10px; font-size: 17px; }
p { margin: 4px 0; } .soft { color: var(--soft); }
.tiles, .plots { display: grid; gap: 12px; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); margin-top: 16px; }
.plots { align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 12px 14px; }
.tile b { display: block; font-size: 24px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile b + b { font-size: 18px; }
.tile small { color: var(--soft); font-size: 13px; }
figure { margin: 0; } figcaption { font-weight: 600; } figcaption small { color: var(--soft);
  font-weight: 400; }
svg { display: block; width: 100%; height: auto; margin-top: 8px;
  font: 14px system-ui, sans-serif; }
.wide { overflow-x: auto; } .gap { margin-top: 12px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px 5px 0; border-bottom: 1px solid var(--rule); text-align: right;
  white-space: nowrap; }
th { color: var(--soft); font-weight: 500; }
th:first-child, td:first-child { text-align: left; min-width: 150px;
  white-space: normal; }
td small { display: block; color: var(--soft); }
.key { display: inline-flex; gap: 6px; align-items: center; margin-right: 16px; }
.key i { width: 14px; height: 4px; border-radius: 2px; }
.k0 { background: var(--c0); } .k1 { background: var(--c1); } .k2 { background: var(--c2); }
.grid { stroke: var(--rule); } .mark { stroke: var(--soft); stroke-dasharray: 3 3; }
.tick { fill: var(--soft); }
.name { fill: var(--ink); }
.end { text-anchor: end; }
.mid { text-anchor: middle; }
.l0, .l1, .l2 { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
.l0 { stroke: var(--c0); } .l1 { stroke: var(--c1); } .l2 { stroke: var(--c2); }
.b0, .b1, .b2 { opacity: .22; }
.b0, .f0 { fill: var(--c0); }
.b1, .f1 { fill: var(--c1); }
.b2, .f2 { fill: var(--c2); }
.shade { fill: var(--shade); opacity: .6; }
.warning { margin-top: 12px; background: var(--shade); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""
