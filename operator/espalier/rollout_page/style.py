"""The page's only style. It loads nothing."""

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: .2rem; }
h2 { font-size: 1rem; margin: 2rem 0 .4rem; overflow-wrap: anywhere; }
p, dl { margin: .3rem 0; }
.note, .legend, .facts { color: light-dark(#555, #aaa); font-size: .87rem; }
.legend span { padding: 0 .4rem; border-radius: .2rem; }
article { border: 1px solid var(--line); border-radius: .4rem; margin: .6rem 0;
  padding: .5rem .8rem; }
article.left { opacity: .75; border-style: dashed; }
header { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .87rem; }
header b { font-variant-numeric: tabular-nums; }
.good { color: light-dark(#0a6b2d, #6fdc93); }
.bad { color: light-dark(#a3201b, #ff9b92); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; margin: .4rem 0;
  font: 13px/1.55 ui-monospace, monospace; background: var(--soft); border-radius: .3rem;
  padding: .4rem .6rem; }
.role { font-size: .8rem; font-weight: 600; }
.control { border: 1px solid var(--line); border-radius: .2rem; font-size: .8em; opacity: .8; }
summary { cursor: pointer; font-size: .87rem; }
ins { background: light-dark(#c9f2d5, #14532d); text-decoration: none; }
del { background: light-dark(#fbd3d0, #6b1f1b); }
.p0 { background: transparent; }
.p1 { background: light-dark(#fff6cf, #3d370f); }
.p2 { background: light-dark(#ffe3a3, #5c4408); }
.p3 { background: light-dark(#ffc489, #7a3d0c); }
.p4 { background: light-dark(#ff9f87, #8f2a16); }
.p5 { background: light-dark(#f47c96, #9c1740); }
"""
