"""The page of continuous mode is one document, joined from three files."""

from __future__ import annotations

import re

from comfyui_runner.page import PAGE_FILES, join_page, read_page
from comfyui_runner.resources import read_resource


def test_style_and_script_are_put_where_the_markup_names_them() -> None:
    markup = '<head><link rel="stylesheet" href="console.css"></head>\n<script src="console.js"></script>\n'
    joined = join_page(markup, "p { margin: 0 }\n", 'say("<p>\\1")\n')
    style, script = "<style>\np { margin: 0 }\n</style>", '<script>\nsay("<p>\\1")\n</script>'
    assert joined == f"<head>{style}</head>\n{script}\n"


def test_the_page_fetches_nothing_of_its_own() -> None:
    page = read_page().decode()
    assert page.count("<style>") == page.count("<script>") == page.count("</script>") == 1
    assert "console.css" not in page.partition("<style>")[2]
    assert 'src="console.js"' not in page


def test_the_page_speaks_plain_english_and_not_the_terminals_language() -> None:
    """The words of the page, and its comments: no flags but where they are replaced, no odd English."""
    markup, _, script = (read_resource(name) for name in PAGE_FILES)
    before, _, rest = script.partition("const wordings = [")
    _, _, after = rest.partition("\nfunction inPageWords")
    assert before and after
    odd = (
        r"--[a-z]|\bis no\b|\btaken off\b|\bstands? (twice|there)\b|\bwhoever\b|\ball the same\b|\bgive --|\bin vain\b"
    )
    # Who opens the page on a phone has to start the service in another way: these flags are the answer.
    before, after = (text.replace("with --host 0.0.0.0 and --token SECRET", "") for text in (before, after))
    for text in (markup.replace("<!--", "").replace("-->", ""), before + after):
        assert [line for line in text.splitlines() if re.search(odd, line, re.I)] == []
