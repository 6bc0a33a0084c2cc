"""The page of continuous mode is one document, joined from three files."""

from __future__ import annotations

from comfyui_runner.page import join_page, read_page


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
