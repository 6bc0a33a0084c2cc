"""The contact sheet of a batch: what it shows of a manifest, and how."""

from __future__ import annotations

import html.parser
import io
import json
import os
from typing import Any, Dict, List, Optional, Tuple

import pytest

from comfyui_runner.errors import SaveError
from comfyui_runner.extras.sheet import (
    SHEET_MARK,
    Axes,
    Sheet,
    absolute_address,
    address_from,
    choose_axes,
    index_manifest,
    make_sheet,
    read_cells,
    sheet_path,
)


def entry(number: int, status: str = "done", name: str = "a.png", **values: Any) -> Dict[str, Any]:
    """A line of a manifest."""
    outputs = [{"path": os.path.join(os.sep, "out", "%05d" % number, name), "text": None}]
    return {
        "row": number, "values": values, "seeds": {"3.seed": 100 + number}, "seconds": 1.25, "status": status,
        "outputs": outputs if status == "done" else [], "message": "KSampler failed: <b>no</b>",
    }  # fmt: skip


class Page(html.parser.HTMLParser):
    """What a browser sees of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: List[Tuple[str, Dict[str, Optional[str]]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, tag: str, name: str) -> List[Optional[str]]:
        return [attributes.get(name) for each, attributes in self.tags if each == tag]

    def count(self, tag: str) -> int:
        return len(self.values(tag, ""))


def page_of(*entries: Dict[str, Any], tail: bytes = b"") -> Page:
    manifest = io.BytesIO("".join(json.dumps(each) + "\n" for each in entries).encode() + tail)
    index = index_manifest(manifest)
    return Page("".join(make_sheet("flow.json", read_cells(manifest, index), index, os.path.join(os.sep, "out"))))


def test_each_row_is_shown_with_its_picture_its_seed_and_its_time() -> None:
    page = page_of(entry(2), entry(1))
    assert page.values("img", "src") == ["00001/a.png", "00002/a.png"]  # in the order of the rows
    assert page.values("img", "alt") == ["Row 1: a.png", "Row 2: a.png"]
    assert "Row 1, seed 101, 1.2 s" in page.text or "Row 1, seed 101, 1.3 s" in page.text
    assert "flow.json: 2 rows" in page.text


def test_only_the_values_that_differ_are_shown() -> None:
    page = page_of(entry(1, positive="a fox", steps=4), entry(2, positive="a cat", steps=4))
    assert "positive: a fox" in page.text and "positive: a cat" in page.text and "steps" not in page.text


def test_a_failed_row_says_why_in_words() -> None:
    page = page_of(entry(1, "failed"))
    assert "Failed: KSampler failed: <b>no</b>" in page.text
    assert page.count("img") == 0 and page.count("b") == 0


def test_two_values_that_differ_make_a_grid() -> None:
    rows = [(p, s) for p in ("a fox", "a cat") for s in ("1", "2", "3")]
    page = page_of(*(entry(n, positive=p, seed=s) for n, (p, s) in enumerate(rows, 1)))
    assert (page.count("table"), page.count("tr"), page.count("td")) == (1, 3, 6)
    assert page.values("th", "scope") == [None, "col", "col", "col", "row", "row"]
    assert page.values("img", "src")[4] == "00005/a.png"


def test_a_grid_is_in_the_order_of_the_rows_however_they_ended() -> None:
    rows = [(p, s) for p in ("a fox", "a cat") for s in ("1", "2", "3")]
    entries = [entry(n, positive=p, seed=s) for n, (p, s) in enumerate(rows, 1)]
    assert page_of(*reversed(entries)).tags == page_of(*entries).tags


def test_a_third_one_makes_a_section_for_each_of_its_values() -> None:
    rows = [(a, b, c) for a in "xy" for b in "12" for c in "34"]
    page = page_of(*(entry(n, a=a, b=b, c=c) for n, (a, b, c) in enumerate(rows, 1)))
    assert (page.count("table"), page.count("h2"), page.count("img")) == (2, 2, 8)
    assert "a: x" in page.text and "a: y" in page.text


def test_a_grid_that_is_not_done_yet_has_empty_places() -> None:
    page = page_of(entry(1, a="1", b="1"), entry(2, a="1", b="2"), entry(3, a="2", b="1"))
    assert (page.count("td"), page.count("img")) == (4, 3)


@pytest.mark.parametrize(
    "rows",
    [
        [("1", "1"), ("1", "1"), ("2", "2"), ("2", "1"), ("1", "2")],  # one is there twice
        [("1", "1"), ("2", "2"), ("3", "3"), ("4", "4"), ("5", "5")],  # no combinations
        [(str(n), str(n % 2)) for n in range(90)],  # too many for an axis
    ],
)
def test_other_rows_flow_as_the_window_is_wide(rows: List[Tuple[str, str]]) -> None:
    page = page_of(*(entry(n, a=a, b=b) for n, (a, b) in enumerate(rows, 1)))
    assert page.count("table") == 0 and page.count("figure") == len(rows)


def test_the_last_names_are_the_rows_and_the_columns() -> None:
    lines = [json.dumps(entry(n, a=n % 2, b=n // 2 % 2, c=n // 4)) for n in range(8)]
    index = index_manifest(io.BytesIO("\n".join(lines).encode()))
    assert choose_axes(index) == Axes(["a"], "b", "c")


def test_a_row_that_ran_again_counts_as_it_ended_last() -> None:
    page = page_of(entry(1, "failed"), entry(1))
    assert page.count("figure") == page.count("img") == 1


def test_lines_that_are_no_rows_are_passed_over() -> None:
    page = page_of({"row": "x"}, entry(1), tail=b'\n{"row": 2, "stat')
    assert page.count("figure") == 1


@pytest.mark.parametrize(
    ("name", "tag"), [("a.mp4", "video"), ("a.flac", "audio"), ("a.png", "img"), ("a.glb", "a"), ("no ending", "a")]
)
def test_what_plays_is_played_and_other_files_are_links(name: str, tag: str) -> None:
    page = page_of(entry(1, name=name))
    assert {"video", "audio", "img"} & {each for each, _ in page.tags} == {tag} - {"a"}
    assert name in page.text
    assert page.count("a") == 1


def test_a_text_is_shown_as_it_is() -> None:
    row = {**entry(1), "outputs": [{"text": "<script>x</script>"}]}
    page = page_of(row)
    assert page.count("script") == 0 and "<script>x</script>" in page.text


def test_what_is_in_a_manifest_cannot_become_markup() -> None:
    evil = '"><script>alert(1)</script>'
    page = page_of(entry(1, name=evil + ".png", p=evil), entry(2, p="x"))
    assert page.count("script") == 0
    assert evil in page.text


def test_addresses_lead_to_the_files_from_where_the_page_is(tmp_path: Any) -> None:
    path = os.path.join(str(tmp_path), "a b", "50%#1.png")
    assert address_from(path, str(tmp_path)) == "a%20b/50%25%231.png"


def test_a_name_that_is_no_text_does_not_end_the_sheet() -> None:
    assert address_from(os.path.join("out", "a\udcff.png"), "out") == "a%3F.png"
    page_of(entry(1, name="a\ud800.png"))


def test_a_path_that_is_relative_to_its_drive_has_an_address(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    address = absolute_address(os.path.join("out", "a b.png"))
    assert address.startswith("file:///") and address.endswith("/out/a%20b.png")


@pytest.mark.parametrize(
    ("manifest", "sheet"),
    [
        ("manifest.jsonl", "sheet.html"),
        ("rows1.manifest.jsonl", "rows1.sheet.html"),
        ("rows2.manifest.jsonl", "rows2.sheet.html"),
        ("log.jsonl", "log.sheet.html"),
        ("my.log", "my.sheet.html"),
    ],
)
def test_each_manifest_of_a_folder_has_a_sheet_of_its_own(manifest: str, sheet: str) -> None:
    assert sheet_path(os.path.join("out", manifest)) == os.path.join("out", sheet)


def test_a_long_value_is_cut_and_shown_whole_at_the_pointer() -> None:
    page = page_of(entry(1, p="x" * 300), entry(2, p="y"))
    assert page.values("span", "title") == ["x" * 300]
    assert "x" * 300 not in page.text


def test_a_page_of_somebody_else_is_left_alone(tmp_path: Any) -> None:
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(json.dumps(entry(1)) + "\n", encoding="utf-8")
    sheet = Sheet(str(manifest), "flow.json")
    sheet.write()
    assert SHEET_MARK in (tmp_path / "sheet.html").read_text(encoding="utf-8")
    sheet.write()  # ours is replaced
    (tmp_path / "sheet.html").write_text("<p>mine", encoding="utf-8")
    with pytest.raises(SaveError, match="is not one of our sheets"):
        sheet.write()
    assert (tmp_path / "sheet.html").read_text(encoding="utf-8") == "<p>mine"
    manifest.unlink()
    (tmp_path / "sheet.html").unlink()
    with pytest.raises(SaveError, match="cannot be read"):
        sheet.write()
