"""The frame of a page: its head and its looks, light or dark as the reader's system is."""

from __future__ import annotations

from html import escape

_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --text: #1b1b1b; --quiet: #595959; --line: #d0d0d0; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #15171a; --text: #ececec; --quiet: #a8a8a8; --line: #3d4147; }
}
body { margin: 0 auto; max-width: 84rem; padding: 1rem; background: var(--ground); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; margin-top: 2rem; } h3 { font-size: 1rem; margin: 0 0 .3rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem 2rem; }
figure { margin: 0 0 1rem; }
figure > svg { width: 100%; height: auto; }
svg text { font-size: 12px; fill: var(--quiet); }
svg line, svg polyline { fill: none; stroke-width: 2; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg line.mark { stroke: var(--quiet); stroke-width: 1.5; }
.legend span { margin-right: 1rem; white-space: nowrap; }
img { max-width: 100%; image-rendering: auto; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .1rem .8rem .1rem 0; border-bottom: 1px solid var(--line); font-weight: normal; }
th { color: var(--quiet); }
pre { white-space: pre-wrap; background: color-mix(in srgb, var(--text) 6%, transparent); padding: .6rem; }
summary { cursor: pointer; color: var(--quiet); }
:focus-visible { outline: 3px solid #56B4E9; outline-offset: 2px; }
"""
# Nothing is loaded from anywhere, and no script runs, whatever got into the page.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title: str, body: str) -> str:
    """A whole page.

    Args:
      title: as text.
      body: as HTML.
    """
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )
