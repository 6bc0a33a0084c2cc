"""A file becomes a prompt, or a person hears what it is instead; what a prompt will do can be read from it."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
import zlib
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import anything, few
from support import ROOT, node

from comfyui_runner.documents import EXPORT_REMEDY, Document, parse_document
from comfyui_runner.errors import WorkflowError
from comfyui_runner.extras.pictures import png_texts, webp_texts
from comfyui_runner.nodes import (
    InputRef,
    class_of,
    ends_of_cycles,
    find_cycle,
    is_link,
    node_in_prompt,
    node_title,
    planned_nodes,
    upstream,
)
from comfyui_runner.summary import Summary, summarize

with open(os.path.join(ROOT, "workflow_api.json"), "rb") as file:
    WORKFLOW_API = file.read()


def prompt_in(data: bytes) -> Dict[str, Any]:
    """The prompt of a document that has one."""
    prompt = parse_document(data, "w.json").prompt
    assert prompt is not None
    return prompt


def refusal(data: bytes) -> WorkflowError:
    with pytest.raises(WorkflowError) as caught:
        parse_document(data, "w.json")
    return caught.value


# ------------------------------------------------------------------------------------------------
# Reading a prompt
# ------------------------------------------------------------------------------------------------


def test_a_prompt_in_api_format_is_read_as_it_is() -> None:
    prompt = prompt_in(WORKFLOW_API)
    assert prompt == json.loads(WORKFLOW_API)
    assert [node["class_type"] for node in prompt.values()] == [
        "CheckpointLoaderSimple", "CLIPTextEncode", "CLIPTextEncode", "EmptyLatentImage", "KSampler", "VAEDecode",
        "SaveImage",
    ]  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_windows_writes_json_in_other_encodings_too(encoding: str) -> None:
    data = '{"1": {"class_type": "CLIPTextEncode", "inputs": {"text": "狐 in the snow"}}}'.encode(encoding)
    assert prompt_in(data)["1"]["inputs"]["text"] == "狐 in the snow"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "w.json is empty."),
        (b"  \r\n", "w.json is empty."),
        (b'{\n  "1": oops\n}', "w.json is not JSON: line 2, column 8: Expecting value."),
        (b'{"1": {}} {', "w.json is not JSON: line 1, column 11: Extra data."),
        (b"\xef\xbb\xbf", "w.json is empty."),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "w.json is a picture without a workflow."),
        (b"\xff\xd8\xff\xe0 a JPEG", "w.json is a JPEG picture, not a workflow."),
        (b"<!DOCTYPE html><html>", "w.json is a web page, not a workflow."),
        (b"\0\0\0\x20ftypisom", "w.json is an MP4 video, not a workflow."),
        (b"\xff\xfe\xfd", "w.json is neither text nor a PNG or WebP picture."),
        (b'{"1": "\xff\x01"}', "w.json is neither text nor a PNG or WebP picture."),
        (
            b'{\n"1": "caf\xe9 \xfcber"}',
            "w.json is not in UTF-8, which JSON requires, but probably in Windows-1252 (line 2).",
        ),
        (
            '{"1": "雪地里的狐狸"}'.encode("gbk"),
            "w.json is not in UTF-8, which JSON requires, but probably in GBK (line 1).",
        ),
        (b"[]", "w.json is not a workflow: it contains a list, not an object of nodes."),
        (b'"text"', "w.json is not a workflow: it contains a string, not an object of nodes."),
        (b"null", "w.json is not a workflow: it contains null, not an object of nodes."),
        (b"true", "w.json is not a workflow: it contains true or false, not an object of nodes."),
        (b"7", "w.json is not a workflow: it contains a number, not an object of nodes."),
        (b"NaN", "w.json is not a workflow: it contains a number, not an object of nodes."),
        (b"{}", "w.json has no nodes: it is an empty object."),
        (b'{"prompt": {}}', "w.json has no nodes: it is an empty object."),
        (b'{"prompt": []}', 'w.json is not a workflow: its entry "prompt" is a list without a class_type, not a node.'),
        (b"[1, 2, 3, 4]", "w.json is not a workflow: it contains a list, not an object of nodes."),
        (
            b'{"1": {"class_type": "X", "inputs": {}}, "extra": []}',
            'w.json is not a workflow: its entry "extra" is a list without a class_type, not a node.',
        ),
        (
            b'{"last_node_id": null}',
            'w.json is not a workflow: its entry "last_node_id" is null without a class_type, not a node.',
        ),
        (
            b'{"1": {"class_type": 5, "inputs": {}}}',
            'w.json is not a workflow: its entry "1" is an object without a class_type, not a node.',
        ),
        (b'{"1": {"class_type": "KSampler"}}', "w.json: node 1 (KSampler) has no inputs object."),
        (b'{"1": {"class_type": "KSampler", "inputs": []}}', "w.json: node 1 (KSampler) has no inputs object."),
    ],
)
def test_what_is_not_a_workflow_is_refused_with_what_it_is(data: bytes, message: str) -> None:
    assert refusal(data).message == message


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        (b"", "choose Save or Export (API)"),
        (b"<html>", "get the file itself (on GitHub: Raw)"),
        (b"\xff\xd8\xff\xe0", "Get the picture as ComfyUI saved it"),
        (b"%PDF-1.7", "choose Save or Export (API)"),
        (b'{"1": "\xe9 "}', "iconv -f CP1252 -t UTF-8"),
        ('{"1": "狐狸"}'.encode("gbk"), "iconv -f GBK -t UTF-8"),
    ],
)
def test_what_is_not_a_workflow_is_refused_with_what_to_do(data: bytes, remedy: str) -> None:
    assert remedy in refusal(data).remedy


@pytest.mark.parametrize("data", [b"[]", b"{}", b'{"prompt": {}}', b'{"1": {"class_type": "KSampler"}}'])
def test_a_document_of_the_wrong_kind_comes_with_the_way_to_export_the_right_one(data: bytes) -> None:
    assert refusal(data).remedy == EXPORT_REMEDY
    assert "Save or Export (API)" in EXPORT_REMEDY


def test_broken_json_can_be_fixed_by_hand() -> None:
    assert refusal(b"{").remedy == "Fix it there, or export the workflow again."


@pytest.mark.parametrize("data", [b"[" * 100000, b'{"a":' * 100000])
def test_json_that_is_too_deep_is_refused_without_a_crash(data: bytes) -> None:
    assert refusal(data).message.startswith("w.json cannot be read as JSON: ")


def test_names_in_the_file_are_shown_on_one_line() -> None:
    entry = json.dumps({"a\n\x1b[31m" + "b" * 100: 1}).encode()
    assert refusal(entry).message == (
        'w.json is not a workflow: its entry "a ' + "b" * 37 + '…" is a number without a class_type, not a node.'
    )
    named = '{"狐": 1}'.encode()
    assert '"狐"' in refusal(named).message
    without_inputs = json.dumps({"a\nb": {"class_type": "X\nY"}}).encode()
    assert refusal(without_inputs).message == "w.json: node a b (X Y) has no inputs object."


@few
@given(st.binary(max_size=40) | anything.map(lambda value: json.dumps(value).encode()))
def test_any_file_is_read_or_refused(data: bytes) -> None:
    try:
        assert parse_document(data, "w.json") != Document()
    except WorkflowError as error:
        assert error.message.startswith("w.json") and error.message.endswith(".")


# ------------------------------------------------------------------------------------------------
# What is put around a prompt
# ------------------------------------------------------------------------------------------------

PROMPT: Dict[str, Any] = {"3": node("KSampler", seed=1), "9": node("SaveImage", "Save", images=["3", 0])}
UI: Dict[str, Any] = {"nodes": [{"id": 1}], "links": [], "version": 0.4}
EXTRA = {"client_id": "c", "extra_pnginfo": {"workflow": UI}}
ENTRY = {"prompt": [7, "id", PROMPT, EXTRA, ["9"]], "outputs": {}, "status": {"completed": True}}


@pytest.mark.parametrize(
    ("document", "found"),
    [
        (UI, Document(None, UI)),
        ({"prompt": PROMPT}, Document(PROMPT)),
        ({"prompt": PROMPT, "workflow": UI}, Document(PROMPT, UI)),
        ({"prompt": PROMPT, "workflow": {"no": "nodes"}}, Document(PROMPT)),
        ({"prompt": PROMPT, "draws": ["6:1.a.b", 7]}, Document(PROMPT, draws=(InputRef("6:1", "a.b"),))),
        ({"prompt": PROMPT, "draws": "6.text"}, Document(PROMPT)),
        ({"prompt": PROMPT, "extra_data": EXTRA}, Document(PROMPT, UI)),
        ({"workflow": UI}, Document(None, UI)),
        (ENTRY, Document(PROMPT, UI)),
        ({"id": ENTRY}, Document(PROMPT, UI)),
        ({"prompt": node("X")}, Document({"prompt": node("X")})),  # a node whose id is "prompt"
        ({"workflow": PROMPT}, Document(PROMPT)),
        ({"prompt": PROMPT, "extra_data": {**EXTRA, "key": "k"}}, Document(PROMPT, UI, {"key": "k"})),
        ({"workflow": UI, "extra_data": {"key": "k"}}, Document(None, UI, {"key": "k"})),
        ({"workflow": PROMPT, "extra_data": {"key": "k"}}, Document(PROMPT, None, {"key": "k"})),
        ({"workflow": node("X")}, Document({"workflow": node("X")})),
        ({"input": {"workflow": PROMPT, "images": []}}, Document(PROMPT)),  # a job for RunPod's workers
        ({"input": {"workflow": UI}, "id": "job"}, Document(None, UI)),
        ({"input": {"workflow": PROMPT, "prompt": "a fox"}}, Document(PROMPT)),
        ({"input": {"prompt": PROMPT, "workflow": UI}}, Document(PROMPT, UI)),
        ({"input": node("X")}, Document({"input": node("X")})),
    ],
)
def test_a_prompt_is_found_in_what_is_around_it(document: Any, found: Document) -> None:
    assert parse_document(json.dumps(document).encode(), "w.json") == found


def test_a_whole_history_and_an_item_of_the_queue_are_not_workflows() -> None:
    whole = refusal(json.dumps({"a": ENTRY, "b": ENTRY}).encode())
    assert whole.message == 'w.json is not a workflow: its entry "a" is an object without a class_type, not a node.'
    item = refusal(json.dumps(ENTRY["prompt"]).encode())
    assert item.message == "w.json is not a workflow: it contains a list, not an object of nodes."


def test_what_is_wrong_inside_a_wrapped_workflow_is_named() -> None:
    broken = {**PROMPT, "2": {"inputs": {}}}
    message = 'w.json is not a workflow: its entry "2" is an object without a class_type, not a node.'
    for document in ({"workflow": broken}, {"input": {"workflow": broken}}):
        assert refusal(json.dumps(document).encode()).message == message


def test_what_the_history_notes_in_a_node_is_not_part_of_the_next_run() -> None:
    noted = {"1": {**node("LoadImage", image="a.png"), "is_changed": [float("nan")]}}
    assert prompt_in(json.dumps({"prompt": noted}).encode()) == {"1": node("LoadImage", image="a.png")}


# ------------------------------------------------------------------------------------------------
# Pictures
# ------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes) -> bytes:
    """A PNG file with these chunks between its head and its pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0\0\0"))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def text_chunk(form: str, key: str, value: Any) -> bytes:
    """A text as each kind of chunk holds it."""
    data = json.dumps(value).encode()
    if form == "zTXt":
        return chunk(b"zTXt", key.encode() + b"\0\0" + zlib.compress(data))
    if form == "iTXt":
        return chunk(b"iTXt", key.encode() + b"\0\0\0en\0\0" + data)
    if form == "iTXt, compressed":
        return chunk(b"iTXt", key.encode() + b"\0\1\0\0\0" + zlib.compress(data))
    return chunk(form.encode(), key.encode() + b"\0" + data)


def webp(*texts: str, order: str = "<", marked: bool = False, before: bytes = b"") -> bytes:
    """A WebP file whose EXIF has ``texts`` in the tags from 0x0110 down, as ComfyUI writes them."""
    at, table, values = 8 + 2 + 12 * len(texts) + 4, b"", b""
    for number, text in enumerate(texts):
        value = text.encode() + b"\0"
        place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(order + "I", at + len(values))
        table += struct.pack(order + "HHI", 0x0110 - number, 2, len(value)) + place
        values += value if len(value) > 4 else b""
    mark = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    exif = mark + struct.pack(order + "H", len(texts)) + table + b"\0\0\0\0" + values
    exif = b"Exif\0\0" + exif if marked else exif
    body = b"WEBP" + before + b"EXIF" + struct.pack("<I", len(exif)) + exif + b"\0" * (len(exif) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("form", ["tEXt", "zTXt", "iTXt", "iTXt, compressed", "comf"])
def test_a_png_carries_its_prompt_and_its_workflow(form: str) -> None:
    both = png(
        text_chunk(form, "prompt", PROMPT), text_chunk("tEXt", "Software", "x"), text_chunk(form, "workflow", UI)
    )
    assert parse_document(both, "a.png") == Document(PROMPT, UI)
    assert parse_document(png(text_chunk(form, "workflow", UI)), "a.png") == Document(None, UI)
    assert parse_document(png(text_chunk(form, "prompt", PROMPT)), "a.png") == Document(PROMPT)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("marked", [False, True])
def test_a_webp_carries_its_prompt_and_its_workflow(order: str, marked: bool) -> None:
    texts = ["prompt:" + json.dumps(PROMPT), "abc", "workflow:" + json.dumps(UI)]  # a short one between them
    picture = b"VP8L" + struct.pack("<I", 3) + b"abc\0"  # of odd length, so that it is padded
    data = webp(*texts, order=order, marked=marked, before=picture)
    assert parse_document(data, "a.webp") == Document(PROMPT, UI)
    assert parse_document(webp("Workflow:" + json.dumps(UI), order=order), "a.webp") == Document(None, UI)


@pytest.mark.parametrize(
    "data",
    [png(), webp(), png(text_chunk("tEXt", "parameters", "a fox")), webp("abc", "x:{}"),
     png(text_chunk("tEXt", "prompt", {})), png(chunk(b"eXIf", b"prompt\0{}")),
     png(chunk(b"zTXt", b"other\0\0broken")), b"RIFF\0\0\0\0WEBP"],
)  # fmt: skip
def test_a_picture_that_carries_nothing_is_reported_as_such(data: bytes) -> None:
    error = refusal(data)
    assert error.message == "w.json is a picture without a workflow."
    assert "many sites and programs strip it" in error.remedy


@pytest.mark.parametrize(
    "data",
    [png(chunk(b"tEXt", b"prompt\0{")), webp("prompt:{"), png(chunk(b"zTXt", b"prompt\0\0broken")),
     png(chunk(b"tEXt", b"prompt\0" + b"[" * 100000)), png(chunk(b"iTXt", b"prompt"))],
)  # fmt: skip
def test_a_picture_whose_prompt_is_broken_is_reported_as_such(data: bytes) -> None:
    assert refusal(data).message == "w.json contains a prompt that is not JSON."


def test_only_the_texts_of_comfyui_are_kept() -> None:
    bombs = [chunk(b"zTXt", b"bomb%d\0\0" % number + zlib.compress(b"0" * 10**6)) for number in range(3)]
    assert png_texts(png(*bombs, text_chunk("tEXt", "prompt", 1))) == {"prompt": "1"}
    assert webp_texts(webp("other:" + "0" * 99, "prompt:1")) == {"prompt": "1"}
    assert png_texts(b"GIF89a") is None and webp_texts(b"RIFF0000AVI ") is None


def memory_of(work: Callable[[], Any]) -> int:
    """The most bytes that are taken while ``work()`` is done."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_of_many_texts_only_the_last_one_of_each_is_unpacked() -> None:
    """40 of them, each of 64 MiB, took ten seconds."""
    bomb = zlib.compress(b"0" * (32 << 20))
    texts = [chunk(b"zTXt", b"prompt\0\0" + bomb), chunk(b"iTXt", b"workflow\0\1\0\0\0" + bomb)] * 20
    data = png(*texts, text_chunk("zTXt", "prompt", PROMPT), text_chunk("iTXt", "workflow", UI))
    assert memory_of(lambda: parse_document(data, "a.png")) < 4 << 20
    assert parse_document(data, "a.png") == Document(PROMPT, UI)


@pytest.mark.parametrize("sizes", [(65, 0), (0, 65), (40, 40)])
def test_the_texts_of_a_picture_have_a_limit_together(sizes: Tuple[int, int]) -> None:
    first, second = (zlib.compress(b'"' + b"0" * (size << 20) + b'"') for size in sizes)
    data = png(chunk(b"zTXt", b"prompt\0\0" + first), chunk(b"iTXt", b"workflow\0\1\0\0\0" + second))
    reported: List[WorkflowError] = []
    assert memory_of(lambda: reported.append(refusal(data))) < 160 << 20
    assert reported[0].message == "The texts in the picture are larger than 64.0 MB when they are unpacked."


def test_a_long_text_leaves_no_room_for_a_packed_one() -> None:
    long = chunk(b"tEXt", b"prompt\0" + b" " * (64 << 20) + b"{}")
    assert "larger than 64.0 MB" in refusal(png(long, text_chunk("zTXt", "workflow", UI))).message


def test_the_same_bytes_of_a_webp_are_not_read_over_and_over() -> None:
    """All entries of its EXIF can be about the same long text."""
    text = b"prompt:" + b"0" * (1 << 20)
    count = 60000
    entry = struct.pack("<HHII", 0x0110, 2, len(text), 8 + 2 + 12 * count)
    exif = b"II*\0" + struct.pack("<IH", 8, count) + entry * count + text
    chunk_of_exif = b"EXIF" + struct.pack("<I", len(exif)) + exif
    data = b"RIFF" + struct.pack("<I", 4 + len(chunk_of_exif)) + b"WEBP" + chunk_of_exif
    assert webp_texts(data) == {"prompt": "0" * (1 << 20)}


def outcome(data: bytes) -> Optional[Document]:
    """The document in ``data``; None where the reason is reported."""
    try:
        return parse_document(data, "w.json")
    except WorkflowError:
        return None


@pytest.mark.parametrize(
    "whole",
    [png(text_chunk("tEXt", "prompt", PROMPT)), png(text_chunk("iTXt, compressed", "prompt", PROMPT)),
     png(text_chunk("zTXt", "prompt", PROMPT)), webp("prompt:" + json.dumps(PROMPT)),
     webp("prompt:" + json.dumps(PROMPT), order=">", marked=True)],
)  # fmt: skip
def test_a_picture_that_is_cut_anywhere_is_read_or_refused(whole: bytes) -> None:
    assert outcome(whole) == Document(PROMPT)
    assert {outcome(whole[:end]) is None for end in range(len(whole))} <= {True, False}
    assert outcome(whole[:60]) is None


@few
@given(
    st.binary(max_size=80),
    st.sampled_from([b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBPEXIF\x50\0\0\0"]),
    st.integers(0, 300),
)
def test_hostile_pictures_are_read_or_refused(data: bytes, head: bytes, place: int) -> None:
    for whole in (head + data, head + b"II*\0" + data, head + b"MM\0*\0\0\0\x08" + data):
        assert outcome(whole) in (None, Document(PROMPT))
    spoiled = bytearray(webp("prompt:" + json.dumps(PROMPT)))
    spoiled[place % len(spoiled)] ^= 0xFF
    found = outcome(bytes(spoiled))
    assert found is None or isinstance(found, Document)


# ------------------------------------------------------------------------------------------------
# Nodes and their names
# ------------------------------------------------------------------------------------------------

NAMED: Dict[str, Any] = {
    "5": node("ImageBatch", "Batch of two"),
    "12:34": node("KSampler", "Inner"),
    "7": node("VAEDecode"),
    "8": node("SaveImage", "  \n "),
    "9": {"class_type": "SaveImage", "inputs": {}, "_meta": {"title": 9}},
    "10": {"class_type": "X", "inputs": {}, "_meta": None},
}


@pytest.mark.parametrize(
    ("node_id", "found", "class_type", "title"),
    [
        ("5", "5", "ImageBatch", "Batch of two"),
        ("5.0.0.1", "5", "ImageBatch", "Batch of two"),
        ("12:34", "12:34", "KSampler", "Inner"),
        ("12:34.0.2", "12:34", "KSampler", "Inner"),
        ("7", "7", "VAEDecode", "VAEDecode"),
        ("8", "8", "SaveImage", "SaveImage"),
        ("9", "9", "SaveImage", "SaveImage"),
        ("10", "10", "X", "X"),
        ("12", None, "", "12"),
        ("99.1", None, "", "99.1"),
        (".", None, "", "."),
        ("", None, "", ""),
    ],
)
def test_a_node_that_was_made_at_run_time_goes_by_the_name_of_its_origin(
    node_id: str, found: Any, class_type: str, title: str
) -> None:
    assert node_in_prompt(NAMED, node_id) == found
    assert class_of(NAMED, node_id) == class_type
    assert node_title(NAMED, node_id) == title


def test_a_title_is_one_line_of_moderate_length() -> None:
    prompt = {"1": node("X", "two\nlines \x1b[31mred"), "2": node("X", "t" * 100), "3": node("c" * 100)}
    assert node_title(prompt, "1") == "two lines red"
    assert node_title(prompt, "2") == "t" * 59 + "…"
    assert node_title(prompt, "3") == "c" * 59 + "…"


# ------------------------------------------------------------------------------------------------
# Links
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "linked"),
    [
        (["4", 0], True),
        (["12:34", 1], True),
        ([4, 0], True),
        (["4"], False),
        (["4", 0, 0], False),
        (["4", "0"], False),
        ([None, 0], False),
        ([[], 0], False),
        (("4", 0), False),
        ("4", False),
        ({"__value__": ["4", 0]}, False),
        (None, False),
    ],
)
def test_a_link_is_a_node_and_a_slot(value: Any, linked: bool) -> None:
    assert is_link(value) is linked


#: Two pictures from one loader; the second one's way is longer.
TWO_ENDS = {
    "1": node("CheckpointLoaderSimple", ckpt_name="m.safetensors"),
    "2": node("VAEDecode", vae=["1", 2]),
    "3": node("SaveImage", images=["2", 0]),
    "4": node("ImageInvert", image=["2", 0]),
    "5": node("SaveImage", images=["4", 0]),
}


def test_upstream_of_a_node_is_all_that_it_needs() -> None:
    assert upstream(TWO_ENDS, ["3"]) == {"1", "2", "3"}
    assert upstream(TWO_ENDS, ["4"]) == {"1", "2", "4"}
    assert upstream(TWO_ENDS, ["3", "5"]) == set(TWO_ENDS)
    assert upstream(TWO_ENDS, []) == frozenset()


def test_upstream_of_a_node_that_needs_another_twice_is_whole() -> None:
    prompt = {"1": node("A", a=["3", 0], b=["2", 0], c=["2", 1]), "2": node("B"), "3": node("C")}
    assert upstream(prompt, ["1"]) == {"1", "2", "3"}


def test_upstream_ignores_what_is_not_in_the_prompt() -> None:
    prompt = {"1": node("SaveImage", images=["404", 0], other=["x"], more=[1, 0])}
    assert upstream(prompt, ["1", "77"]) == {"1"}
    assert upstream({"1": {"class_type": "X", "inputs": None}}, ["1"]) == {"1"}


def test_a_long_chain_is_followed_to_its_beginning() -> None:
    chain = {str(number): node("X", before=[str(number - 1), 0]) for number in range(5000)}
    assert len(upstream(chain, ["4999"])) == 5000
    assert find_cycle(chain, ["4999"]) == []
    chain["0"]["inputs"]["before"] = ["4990", 0]
    assert find_cycle(chain, ["4999"]) == [str(number) for number in range(4990, -1, -1)]


@pytest.mark.parametrize(
    ("links", "cycle"),
    [
        ({"1": ["2", "3"], "2": ["3"], "3": []}, []),  # two ways to 3 are not a ring
        ({"1": ["2", "3"], "2": [], "3": ["4"], "4": ["5"], "5": ["3"]}, ["3", "4", "5"]),
        ({"1": ["1"]}, ["1"]),
        ({"1": [], "2": ["3"], "3": ["404", "2"]}, []),  # nothing needs the ring
    ],
)
def test_links_that_go_in_a_circle_are_found(links: Any, cycle: List[str]) -> None:
    prompt = {}
    for node_id, sources in links.items():
        inputs = {f"input{slot}": [source, 0] for slot, source in enumerate(sources)}
        prompt[node_id] = {"class_type": "X", "inputs": inputs}
    assert find_cycle(prompt, ["1"]) == cycle


def test_what_needs_a_circle_of_links_cannot_run() -> None:
    circle = {"6": node("X", x=["7", 0]), "7": node("X", x=["6", 0]), "8": node("SaveImage", images=["7", 0])}
    assert ends_of_cycles(TWO_ENDS) == []
    assert ends_of_cycles({**TWO_ENDS, **circle}) == ["8"]


def test_all_nodes_are_planned_that_an_end_needs() -> None:
    assert planned_nodes(TWO_ENDS) == set(TWO_ENDS)
    assert planned_nodes({**TWO_ENDS, "6": node("SaveImage", images=["4", 0])}, ["5"]) == {"1", "2", "3", "4", "6"}


def test_what_only_a_dropped_output_needs_is_not_planned() -> None:
    assert planned_nodes(TWO_ENDS, ["5"]) == {"1", "2", "3"}
    assert planned_nodes(TWO_ENDS, ["3"]) == {"1", "2", "4", "5"}
    assert planned_nodes(TWO_ENDS, ["3", "5"]) == frozenset()


def test_a_cycle_ends() -> None:
    ring = {"1": node("A", x=["2", 0]), "2": node("B", x=["1", 0])}
    assert upstream(ring, ["1"]) == {"1", "2"}
    assert planned_nodes(ring) == {"1", "2"}


# ------------------------------------------------------------------------------------------------
# The summary
# ------------------------------------------------------------------------------------------------


def test_the_summary_of_the_workflow_that_comes_along() -> None:
    assert summarize(prompt_in(WORKFLOW_API)) == Summary(
        nodes=7,
        models=[("Load Checkpoint", "sd_xl_base_1.0.safetensors")],
        texts=[
            (
                "Positive Prompt",
                "a small white lighthouse on a rocky coast at dawn, calm sea, thin mist over the water, warm light "
                "on the horizon, soft pastel sky, detailed landscape photograph",
            ),
            ("Negative Prompt", "blurry, low quality, jpeg artifacts, text, watermark"),
        ],
        sampling=[
            ("KSampler", "seed 20240817, steps 25, cfg 7, dpmpp_2m, karras, denoise 1"),
        ],
        sizes=[("Empty Latent Image", "1024 x 1024")],
        files=[],
        saves=[("Save Image", "ComfyUI")],
        values=[],
    )


def test_the_summary_of_a_flux_prompt_whose_sampler_is_in_pieces() -> None:
    assert summarize(
        {
            "6": node("CLIPTextEncode", "Positive", text="a red fox", clip=["11", 0]),
            "8": node("VAEDecode", samples=["13", 0], vae=["10", 0]),
            "9": node("SaveImage", "Save", filename_prefix="flux/fox", images=["8", 0]),
            "10": node("VAELoader", vae_name="ae.SAFETENSORS"),
            "11": node("DualCLIPLoader", clip_name1="t5xxl_fp16.safetensors", clip_name2="clip_l.gguf", type="flux"),
            "12": node("UNETLoader", unet_name="flux1-dev.sft", weight_dtype="default"),
            "13": node("SamplerCustomAdvanced", noise=["25", 0], sampler=["16", 0], sigmas=["17", 0]),
            "16": node("KSamplerSelect", sampler_name="euler"),
            "17": node("BasicScheduler", scheduler="simple", steps=20, denoise=1, model=["12", 0]),
            "25": node("RandomNoise", noise_seed=219670278747233),
            "26": node("FluxGuidance", guidance=3.5, conditioning=["6", 0]),
            "27": node("EmptySD3LatentImage", width=1024, height=768, batch_size=4),
            "28": node("CLIPTextEncodeFlux", clip_l="a fox", t5xxl="a fox in the snow", guidance=["26", 0]),
        }
    ) == Summary(
        nodes=13,
        models=[
            ("VAELoader", "ae.SAFETENSORS"),
            ("DualCLIPLoader", "t5xxl_fp16.safetensors"),
            ("DualCLIPLoader", "clip_l.gguf"),
            ("UNETLoader", "flux1-dev.sft"),
        ],
        texts=[
            ("Positive", "a red fox"),
            ("CLIPTextEncodeFlux", "a fox"),
            ("CLIPTextEncodeFlux", "a fox in the snow"),
        ],
        sampling=[
            ("BasicScheduler", "steps 20, simple, denoise 1"),
            ("RandomNoise", "noise_seed 219670278747233"),
        ],
        sizes=[("EmptySD3LatentImage", "1024 x 768, 4 in a batch")],
        files=[],
        saves=[("Save", "flux/fox")],
        values=[],
    )


def test_numbers_and_empty_texts_before_a_text_do_not_hide_it() -> None:
    summary = summarize({"1": node("Loader", strength=1.0, name=" ", ckpt_name="a.pt", prompt="a fox")})
    assert (summary.models, summary.texts) == ([("Loader", "a.pt")], [("Loader", "a fox")])


def test_the_summary_of_a_video_prompt() -> None:
    assert summarize(
        {
            "1": node("LoadImage", "Start frame", image="start.png", upload="image"),
            "2": node("LoadAudio", audio="voice.mp3"),
            "3": node("WanImageToVideo", width=832, height=480, length=81, batch_size=1, start_image=["1", 0]),
            "4": node("KSamplerAdvanced", noise_seed=["9", 0], steps=4, cfg=1.0, start_at_step=0),
            "5": node("CreateVideo", images=["6", 0], audio=["2", 0], fps=16),
            "6": node("VAEDecode", samples=["4", 0]),
            "7": node("SaveVideo", "Save Video", filename_prefix="video/ComfyUI", format="mp4", video=["5", 0]),
            "8": node("VHS_VideoCombine", frame_rate=16, filename_prefix=["9", 0], width=8, height=8, images=["6", 0]),
            "10": node("PreviewImage", images=["6", 0]),
            "11": node("TextEncodeAceStepAudio", tags="lofi", lyrics=" ", seconds=120.0),
            "12": node("ImageScale", width=["9", 0], height=480, image=["1", 0]),
            "13": node("Switch", image="none", codec="h.264", filename="out.png"),
        }
    ) == Summary(
        nodes=12,
        models=[],
        texts=[("TextEncodeAceStepAudio", "lofi")],
        sampling=[("KSamplerAdvanced", "steps 4, cfg 1.0")],
        sizes=[("WanImageToVideo", "832 x 480, 81 frames")],
        files=[("Start frame", "start.png"), ("LoadAudio", "voice.mp3")],
        saves=[
            ("Save Video", "video/ComfyUI"),
            ("VHS_VideoCombine", "VHS_VideoCombine"),
            ("PreviewImage", "PreviewImage"),
        ],
        values=[],
    )


def test_a_node_that_combines_conditionings_saves_nothing() -> None:
    prompt = {"1": node("ConditioningCombine", conditioning_1=["2", 0], conditioning_2=["3", 0])}
    assert summarize(prompt).saves == []


def test_long_and_dangerous_texts_are_shortened_and_cleaned() -> None:
    summary = summarize(
        {
            "1": node("CLIPTextEncode", "\x1b[31mTitle", text="word\n\x1b[2J" * 100),
            "2": node("Loader", model="m" * 120 + ".pt", seed="\x1b[1mfixed"),
        }
    )
    assert summary.texts == [("Title", "word " * 31 + "word…")]
    assert summary.models == [("Loader", "m" * 99 + "…")]
    assert summary.sampling == [("Loader", "seed fixed")]


def test_the_summary_says_what_was_changed() -> None:
    prompt = {
        "1": node("LoadImage", "Photo", image="example.png"),
        "2": node("CLIPTextEncode", "Text", text="a red fox"),
        "3": node("PrimitiveString", "Words", value="blurry"),
        "4": node("KSampler", seed=7, steps=4, eta=0.5),
    }
    summary = summarize(
        prompt,
        roles={InputRef("2", "text"): "positive", InputRef("3", "value"): "negative"},
        uploads={InputRef("1", "image"): "photos/cat.png"},
        changed=[InputRef("4", "eta"), InputRef("4", "steps"), InputRef("4", "eta"), InputRef("1", "image")],
    )
    assert summary.files == [("Photo", "photos/cat.png (to be uploaded)")]
    assert summary.texts == [("positive", "a red fox"), ("negative", "blurry")]
    assert summary.values == [("4.eta", "0.5")]  # the steps are in the list of what samples


nodes = st.fixed_dictionaries({"class_type": st.text(max_size=8), "inputs": anything})


@few
@given(st.dictionaries(st.text(max_size=4), nodes))
def test_any_prompt_can_be_summarized(prompt: Dict[str, Any]) -> None:
    assert summarize(prompt).nodes == len(prompt)
    assert planned_nodes(prompt) <= set(prompt)
