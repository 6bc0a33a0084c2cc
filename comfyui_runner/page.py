"""The page of continuous mode: one document, joined from three files when the service starts."""

from __future__ import annotations

from comfyui_runner.resources import read_resource

#: The files of the page, in extras/. The first one names the other two.
PAGE_FILES = ("console.html", "console.css", "console.js")

#: Where console.html names them.
STYLE_PLACE = '<link rel="stylesheet" href="console.css">'
SCRIPT_PLACE = '<script src="console.js"></script>'


def read_page() -> bytes:
    """The page as browsers get it: style and script are in it, so nothing else is fetched."""
    markup, style, script = (read_resource(name) for name in PAGE_FILES)
    return join_page(markup, style, script).encode()


def join_page(markup: str, style: str, script: str) -> str:
    """``markup`` with ``style`` and ``script`` where it names their files."""
    before_style, _, rest = markup.partition(STYLE_PLACE)
    before_script, _, after_script = rest.partition(SCRIPT_PLACE)
    return (
        f"{before_style}<style>\n{style}</style>"
        f"{before_script}<script>\n{script}</script>{after_script}"
    )
