"""Static pages with small images inside: one file, which asks nothing of anywhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape

import numpy as np
from PIL import Image

from instcls_tf import files
from instcls_tf.data.source import Source
from instcls_tf.data.squares import squares_of

THUMBNAIL_SIDE = 96
# A browser that keeps to it loads nothing but the images inside, and runs nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 14px/1.4 sans-serif; margin: 1.5em; max-width: 80em }
section { border-top: 1px solid #bbb; padding: .6em 0; display: flex; flex-wrap: wrap; gap: .6em }
figure { margin: 0; width: 112px; overflow-wrap: anywhere; font-size: 11px }
img, .none { width: 96px; height: 96px; display: block; border: 2px solid transparent }
.none { background: #ddd } .marked img, .marked .none { border-color: #c33 }
.warning { background: #fe9; padding: .5em }
"""


def thumbnails_of(source: Source, ids: Iterable[int]) -> dict[int, str]:
    """Data URIs of some images by their ids; what cannot be read is left out."""
    wanted = np.array(sorted(set(ids)), np.int64)
    return {square.instance_id: data_uri(square.pixels) for square in squares_of(source, wanted, THUMBNAIL_SIDE)}


def data_uri(pixels: np.ndarray) -> str:
    """An image uint8 `[H, W, 3]` as a JPEG that stands in the page itself."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def figure(uri: str | None, name: str, text: str = "", is_marked: bool = False) -> str:
    """An image, its name and a line about it; a grey square where there is no image."""
    image = f'<img src="{uri}" alt="{escape(name)}">' if uri else '<span class="none"></span>'
    about = f"<br>{escape(text)}" if text else ""
    caption = f"<figcaption>{escape(name)}{about}</figcaption>"
    return f'<figure class="{"marked" if is_marked else "plain"}">{image}{caption}</figure>'


def section(figures: Iterable[str], title: str = "") -> str:
    """Images beside each other below a title."""
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    return f"{heading}<section>{''.join(figures)}</section>"


def paragraph(text: str, is_warning: bool = False) -> str:
    """A paragraph."""
    return f"<p{' class=warning' if is_warning else ''}>{escape(text)}</p>"


def write_page(path: str, title: str, parts: Iterable[str]) -> None:
    """Writes a page.

    Args:
      path: the file.
      title: plain text.
      parts: HTML.

    Raises:
      UserError: it cannot be written.
    """
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    head += f"<title>{escape(title)}</title><style>{_STYLE}</style>"
    text = (
        f"<!doctype html><html lang=en><head>{head}</head><body><h1>{escape(title)}</h1>{''.join(parts)}</body></html>"
    )
    files.write(path, text.encode("utf-8", "backslashreplace"))
