"""The style sheet of the report page: system fonts, one measure, light and dark, no colour that
carries meaning alone.

Blue and orange are told apart by every kind of colour vision (Okabe and Ito's pair), grey is the
third. Text colours keep at least 4.5:1 against their ground in both schemes; bars, dots and
smoothed lines at least 3:1.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, Charter, Georgia, "Liberation Serif", serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace;
  --ground: #fcfcfb; --raised: #f4f5f3; --ink: #1b1f24; --soft: #555d66; --rule: #dcdfdd; --grid: #e4e7e5;
  --main: #0a62a3; --main-soft: #5a97ca; --other: #ad5300; --plain: #79828b; --mark: #ffe9a8; --mark-edge: #b98900;
  --right: #0a62a3; --wrong: #ad5300; --shade: #0000001a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171a; --raised: #1c2024; --ink: #e7e9eb; --soft: #a7b0b8; --rule: #31373d; --grid: #2a3036;
    --main: #62b2ee; --main-soft: #4380ae; --other: #f0a052; --plain: #8d97a1; --mark: #54430f;
    --mark-edge: #d9ae3a; --right: #62b2ee; --wrong: #f0a052; --shade: #0009;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 1rem/1.6 var(--sans); overflow-wrap: anywhere; }
.page { max-width: 80rem; margin: 0 auto; padding: 3.5rem 1.25rem 4rem; }
code, pre, .mono { font-family: var(--mono); font-size: .875em; }
h1, h2, .lede, .tile b { font-family: var(--serif); font-weight: 600; text-wrap: balance; }
h1 {
  font-size: clamp(2rem, 1.4rem + 2.6vw, 3.1rem); line-height: 1.12; letter-spacing: -.012em; margin: 0 0 1.1rem;
  max-width: 22em;
}
h2 { font-size: 1.5rem; line-height: 1.2; margin: 0 0 .6rem; }
h3 { font-size: 1rem; line-height: 1.45; margin: 0; font-weight: 600; }
p { margin: 0 0 .8rem; }
.kicker { color: var(--soft); font-size: .875rem; margin: 0 0 .9rem; }
.lede {
  font-weight: 400; font-size: clamp(1.1rem, 1rem + .45vw, 1.3rem); line-height: 1.5; max-width: 44em;
  margin: 0 0 .7rem; text-wrap: pretty;
}
.origin { color: var(--soft); margin: 0; }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 1.5rem 2rem; margin: 2.4rem 0 0;
  padding: 0; list-style: none;
}
.tile { border-top: 2px solid var(--ink); padding-top: .7rem; }
.tile b { display: block; font-size: 1.9rem; line-height: 1.15; font-variant-numeric: lining-nums tabular-nums; }
.tile span { display: block; font-size: .875rem; line-height: 1.45; }
.tile .than { color: var(--soft); }
section { border-top: 1px solid var(--rule); margin-top: 3.2rem; padding-top: 1.9rem; }
.about p { color: var(--soft); font-size: .9375rem; line-height: 1.55; max-width: 42em; }
.about { margin-bottom: 1.4rem; }
.matter { min-width: 0; }
.matter > :first-child, .files div:first-child dt { margin-top: 0; }
@media (min-width: 64rem) {
  .page { padding: 5rem 2.5rem 6rem; }
  section { display: grid; grid-template-columns: 15.5rem minmax(0, 1fr); column-gap: 3.2rem; padding-top: 2.2rem; }
}
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); gap: 1.8rem 1.9rem; }
.panels.two { grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }
figure { margin: 0; min-width: 0; max-width: 29rem; }
figcaption { font-size: .875rem; line-height: 1.45; margin-bottom: .5rem; }
.panels:not(.two) figure { display: flex; flex-direction: column; justify-content: space-between; }
figcaption strong { display: block; }
figcaption span, .note, .legend { color: var(--soft); font-size: .875rem; }
.note { max-width: 46em; margin: 1rem 0 0; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 12px var(--sans); fill: var(--ink); font-variant-numeric: tabular-nums; }
svg text.mono { font-family: var(--mono); font-size: 11.5px; }
svg text.tick { fill: var(--soft); font-size: 11px; }
svg text.group { fill: var(--soft); font-size: 12px; }
svg text.group, svg text.value {
  paint-order: stroke; stroke: var(--ground); stroke-width: 4px; stroke-linejoin: round;
}
svg text.value { font-weight: 600; }
.grid { stroke: var(--grid); stroke-width: 1; }
.thread { stroke: var(--rule); stroke-width: 1; stroke-dasharray: 1 4; stroke-linecap: round; }
.raw { fill: none; stroke: var(--main); stroke-opacity: .32; stroke-width: 1; stroke-linejoin: round; }
.smooth { fill: none; stroke: var(--main); stroke-width: 2.1; stroke-linejoin: round; stroke-linecap: round; }
.fill-main { fill: var(--main); }
.fill-soft { fill: var(--main-soft); }
.fill-other { fill: var(--other); }
.fill-plain { fill: var(--plain); }
.marker { fill: var(--ground); stroke: var(--ink); stroke-width: 1.6; }
.ref { stroke: var(--ink); stroke-width: 1.4; }
.ref.constant { stroke-dasharray: 6 3; }
.ref.closed { stroke-dasharray: 1.5 3; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; list-style: none; margin: .9rem 0 0; padding: 0; }
.legend svg { display: inline-block; width: 1.5rem; height: .9rem; margin-right: .45rem; vertical-align: -.1rem; }
.scroll {  /* the shade at an edge shows that there is more */
  overflow-x: auto; margin-top: 1.6rem;
  background:
    linear-gradient(90deg, var(--ground) 40%, transparent) 0 0 / 2.5rem 100% no-repeat local,
    linear-gradient(270deg, var(--ground) 40%, transparent) 100% 0 / 2.5rem 100% no-repeat local,
    linear-gradient(90deg, var(--shade), transparent) 0 0 / .9rem 100% no-repeat scroll,
    linear-gradient(270deg, var(--shade), transparent) 100% 0 / .9rem 100% no-repeat scroll;
}
table {
  border-collapse: collapse; width: 100%; font-size: .9rem; line-height: 1.4; font-variant-numeric: tabular-nums;
}
caption { text-align: left; color: var(--soft); font-size: .875rem; padding-bottom: .45rem; }
th, td {
  text-align: left; vertical-align: top; padding: .42rem .9rem .42rem 0; border-bottom: 1px solid var(--rule);
}
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom; }
tbody th { font-weight: 500; }
.num { text-align: right; white-space: nowrap; overflow-wrap: normal; }
.figures th, .figures td, .figures code { overflow-wrap: normal; }
.figures tbody th { white-space: nowrap; }
.band th { padding-top: 1rem; color: var(--soft); font-weight: 500; font-size: .875rem; white-space: normal; }
details { margin-top: 1.3rem; }
summary { cursor: pointer; color: var(--soft); font-size: .875rem; width: fit-content; }
details .scroll { margin-top: .8rem; }
:focus-visible { outline: 2px solid var(--main); outline-offset: 3px; }
.facts {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .9rem 2rem; margin: 1.8rem 0 0;
}
.facts dt { color: var(--soft); font-size: .875rem; }
.facts dd { margin: 0; font-variant-numeric: tabular-nums; }
.sample { padding: 1.7rem 0; border-bottom: 1px solid var(--rule); }
.sample:first-child { padding-top: 0; }
.sample:last-child { border-bottom: 0; padding-bottom: 0; }
.sample > .gold { margin: .25rem 0 1rem; color: var(--soft); font-size: .9375rem; }
.gold code { color: var(--ink); font-size: .9375em; }
.pair {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1.2rem 2.2rem;
  align-items: start;
}
.document { max-width: none; }
.document figcaption span { white-space: nowrap; }
.document figcaption .absent { display: block; white-space: normal; }
blockquote {
  margin: 0; background: var(--raised); border-radius: 4px; padding: .85rem 1rem; max-height: 21rem;
  overflow-y: auto; white-space: pre-wrap; unicode-bidi: isolate; font-size: .875rem; line-height: 1.55;
}
mark {
  background: var(--mark); color: inherit; box-shadow: 0 2px 0 var(--mark-edge); border-radius: 2px 2px 0 0;
  padding: 0 .1em;
}
.answers { font-size: .875rem; }
.answers th { white-space: nowrap; overflow-wrap: normal; padding-right: .8rem; }
.answers td.answer { width: 100%; unicode-bidi: isolate; }
.answers td.verdict { white-space: nowrap; overflow-wrap: normal; }
.answers .empty { color: var(--soft); font-style: italic; }
.verdict svg {
  display: inline-block; width: .8rem; height: .8rem; margin-right: .35rem; vertical-align: -.05rem; fill: none;
  stroke-width: 2.4; stroke-linecap: round; stroke-linejoin: round;
}
.is-right { color: var(--right); }
.is-wrong { color: var(--wrong); }
.is-right svg { stroke: var(--right); }
.is-wrong svg { stroke: var(--wrong); }
.is-right { font-weight: 600; }
pre {
  margin: 0 0 .55rem; background: var(--raised); border-radius: 4px; padding: .6rem .9rem; white-space: pre-wrap;
  line-height: 1.5; -webkit-user-select: all; user-select: all;
}
pre span { display: inline-block; max-width: 100%; }
.times { max-width: 46rem; }
.times td { vertical-align: middle; }
.times td.share { width: 40%; }
.times th { overflow-wrap: normal; }
.times tbody th { overflow-wrap: anywhere; min-width: 7em; }
.share svg { height: .8rem; }
.files dt { margin-top: .55rem; }
.files dd { margin: 0; color: var(--soft); font-size: .9375rem; }
.files { margin: 0; }
.limits { margin: 0; padding-left: 1.1rem; max-width: 46em; }
.limits li { margin-bottom: .55rem; }
footer {
  border-top: 1px solid var(--rule); margin-top: 3.2rem; padding-top: 1.2rem; color: var(--soft);
  font-size: .875rem;
}
@media (max-width: 30rem) {
  .page { padding-top: 2rem; }
  section { margin-top: 2.4rem; padding-top: 1.5rem; }
  .times td.share { width: 22%; }
  .times tbody th { min-width: 5.5em; }
  .figures { font-size: .8125rem; }
  .figures th, .figures td { padding-right: .55rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 1.3rem 1.2rem; }
  .tile b { font-size: 1.6rem; }
}
@media print {
  .page { padding: 0; max-width: none; }
  section, .sample { break-inside: avoid; }
  blockquote { max-height: none; }
}
"""
