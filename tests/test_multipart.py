"""The parts of a form: every byte of a content survives, and what is not a whole form is refused."""

from __future__ import annotations

import io
import os
import re
import tracemalloc
from typing import List, NamedTuple, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import few, many

from comfyui_runner.messages import HttpError
from comfyui_runner.multipart import (
    LONGEST_BOUNDARY,
    LONGEST_PADDING,
    MOST_PARTS,
    PART_HEAD_LIMIT,
    PIECE_OF_BODY,
    TEXT_PARTS_LIMIT,
    FormPart,
    boundary_in,
    find_parts,
    read_part,
)

TYPE = "multipart/form-data; boundary=cut"
FIELD = b"Content-Disposition: form-data; name=%s\r\n\r\n"


class Sent(NamedTuple):
    """A part as a client sends it."""

    name: str
    filename: Optional[str]
    headers: Tuple[str, ...]
    content: bytes


def encode(parts: List[Sent], boundary: bytes = b"cut", preamble: bytes = b"", padding: bytes = b"") -> bytes:
    """The body of a form as clients write it."""
    pieces = [preamble]
    for part in parts:
        head = f'Content-Disposition: form-data; name="{part.name}"'
        if part.filename is not None:
            head += f'; filename="{part.filename}"'
        lines = "\r\n".join([head, *part.headers]).encode()
        pieces.append(b"--" + boundary + padding + b"\r\n" + lines + b"\r\n\r\n" + part.content + b"\r\n")
    return b"".join(pieces) + b"--" + boundary + b"--" + padding + b"\r\n"


def split(body: bytes, content_type: str = TYPE) -> List[Tuple[FormPart, bytes]]:
    """The parts of a body, and their contents."""
    file = io.BytesIO(body)
    return [(part, read_part(file, part)) for part in find_parts(file, content_type)]


# -- every byte survives ---------------------------------------------------------------------------

TYPES_OF_PARTS = st.sampled_from(
    [
        *("message/rfc822", "message/partial", "message/external-body", "message/delivery-status"),
        *("multipart/mixed; boundary=cut", "multipart/mixed; boundary=inner", "multipart/form-data"),
        *("text/plain", "text/plain; charset=utf-16", "image/png", "application/octet-stream"),
    ]
)
ENCODINGS = st.sampled_from(["base64", "quoted-printable", "7bit", "8bit", "binary", "x-uuencode"])

#: What could be taken for a delimiter, for the end of a head, or for something that is encoded.
LOOK_ALIKES = st.sampled_from(
    [
        *(b"\r\n", b"\r", b"\n", b"\n\n", b"\r\n\r\n", b"--", b"\r\n--", b"--cut", b"\n--cut\n", b"\r--cut--\r"),
        *(b"\r\n--cu", b"\r\n--cutter\r\n", b"\r\n--cut-\r\n", b"\r\n--cut--x", b"\r\n--cut x\r\n", b"\r\n --cut\r\n"),
        *(b"--cut\r\n", b"--cut--\r\n", b"\r\n--CUT\r\n", b"\r\n--cut \n", b"\r\n--inner\r\n", b"\r\n--inner--\r\n"),
        *(b"=3D", b"=\r\n", b"aGVsbG8=", b"From: x\r\n\r\n", b"\x00", b"\xff\xfe", b"\x1a", b"\xef\xbb\xbf"),
        b"\r\n--cut" + b" " * (LONGEST_PADDING + 1) + b"\r\n",
        b"Content-Type: message/rfc822\r\n\r\n",
    ]
)
CONTENTS = st.lists(LOOK_ALIKES | st.binary(max_size=20), max_size=12).map(b"".join)


is_delimiter = re.compile(
    rb"--cut([ \t]{0,%d}|--[ \t]{0,%d}([\r\n].*)?)" % ((LONGEST_PADDING,) * 2), re.DOTALL
).fullmatch


def holds_delimiter(content: bytes) -> bool:
    """Whether a line of ``content`` is the boundary: no client would choose it then.

    Look-alikes may make one together, as CR LF "--cut" and CR LF do.
    """
    return any(is_delimiter(line) for line in content.split(b"\r\n"))


SENT = st.builds(
    Sent,
    name=st.sampled_from(["image", "image[]", "prompt", "5.text", "Mein Knoten.größe", ""]),
    filename=st.sampled_from([None, "", "a.png", "Bär (1).png", "a;b=c.eml"]),
    headers=st.builds(
        lambda type_, encoding: tuple(
            [f"Content-Type: {type_}"] * bool(type_) + [f"Content-Transfer-Encoding: {encoding}"] * bool(encoding)
        ),
        st.none() | TYPES_OF_PARTS,
        st.none() | ENCODINGS,
    ),
    content=CONTENTS.filter(lambda content: not holds_delimiter(content)),
)


@pytest.mark.long
@many
@given(
    sent=st.lists(SENT, max_size=5),
    preamble=st.sampled_from([b"", b"\r\n", b"This is a multipart message.\r\n", b"--cutter\r\n"]),
    padding=st.sampled_from([b"", b" ", b"\t \t"]),
    epilogue=CONTENTS,
)
def test_every_byte_of_every_part_survives(sent: List[Sent], preamble: bytes, padding: bytes, epilogue: bytes) -> None:
    found = split(encode(sent, preamble=preamble, padding=padding) + epilogue)
    assert [(part.name, part.filename, content) for part, content in found] == [
        (part.name, part.filename, part.content) for part in sent
    ]


@few
@given(shift=st.integers(-20, 20), content=CONTENTS.filter(lambda content: not holds_delimiter(content)))
def test_a_delimiter_may_lie_across_two_pieces_of_the_file(shift: int, content: bytes) -> None:
    first = Sent("image", "large.bin", (), b"x" * (PIECE_OF_BODY - 100 + shift) + content)
    second = Sent("image", "small.bin", (), content)
    assert [found for _, found in split(encode([first, second]))] == [first.content, second.content]


@many
@given(st.lists(LOOK_ALIKES | st.sampled_from([FIELD % b"a", b"--cut", b"; ", b"x"]), max_size=15).map(b"".join))
def test_any_bytes_are_parts_or_are_refused(body: bytes) -> None:
    try:
        found = split(body)
    except HttpError as error:
        assert (error.http_status, error.type) == (400, "bad_form")
        return
    for part, content in found:
        assert body[part.offset : part.offset + part.length] == content
        assert not holds_delimiter(content)


PIECES_OF_HEADS = st.sampled_from(
    [
        *(
            "name",
            "filename",
            "name*",
            "name*0",
            "name*0*",
            "name*1*",
            "name*9999999999",
            "=",
            ";",
            "; ",
            '"',
            "'",
            "''",
        ),
        *(
            "utf-8''",
            "nowhere''",
            "%C3%A4",
            "%ff",
            "\\",
            " ",
            "\t",
            "\r\n ",
            "\r\n",
            "\r",
            "\n",
            ":",
            "ä",
            "\x00",
            "\ud800",
        ),
        *("Content-Disposition: form-data; ", "form-data", "name=a", 'filename="b"', "1" * 200),
        *("Content-Type: ", "text/plain", "/", "=?utf-8?q?a?=", "=?x?b?a?=", "Content-Type: a/b; charset*=x'y'z"),
    ]
)


@many
@given(st.lists(PIECES_OF_HEADS, max_size=15).map("".join))
def test_any_head_is_read_or_refused(head: str) -> None:
    body = b"--cut\r\nContent-Disposition: form-data; " + head.encode(errors="surrogatepass") + b"\r\n\r\nx\r\n--cut--"
    try:
        ((part, content),) = split(body)
    except HttpError as error:
        assert (error.http_status, error.type) == (400, "bad_form")
        return
    assert content.endswith(b"x")
    assert isinstance(part.name, str) and isinstance(part.content_type, str)


# -- what heads state ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=cut", b"cut"),
        ('Multipart/Form-Data; charset=x; Boundary="a b"', b"a b"),
        ("multipart/form-data;boundary=cut;charset=utf-8", b"cut"),
        ("multipart/form-data; xboundary=no", b""),
        ("multipart/form-data", b""),
    ],
)
def test_the_boundary_is_in_the_content_type(content_type: str, boundary: bytes) -> None:
    assert boundary_in(content_type) == boundary


@pytest.mark.parametrize(
    ("head", "name", "filename", "content_type"),
    [
        ('content-disposition:form-data;NAME=a', "a", None, ""),
        ('X: y\r\nContent-Disposition: FORM-DATA; name="a b"; filename="c;d.png"', "a b", "c;d.png", ""),
        (r'Content-Disposition: form-data; name="a\"b"; filename="c\\d.png"', 'a"b', r"c\d.png", ""),
        ('Content-Disposition: form-data;\r\n name="größe"', "größe", None, ""),
        ("Content-Disposition: form-data; name=a; filename*=UTF-8''B%C3%A4r.png", "a", "Bär.png", ""),
        ('Content-Disposition: form-data; name="a"; filename=""', "a", "", ""),
        ('Content-Disposition: form-data; name=""', "", None, ""),
        ('Content-Disposition: form-data; name="a"\r\nContent-Type: Image/PNG; x=y', "a", None, "image/png"),
        ('Content-Disposition: form-data; name="a"\r\nContent-Type: odd', "a", None, "text/plain"),
    ],
)  # fmt: skip
def test_a_head_states_the_names_and_the_type(head: str, name: str, filename: Optional[str], content_type: str) -> None:
    ((part, content),) = split(b"--cut\r\n" + head.encode() + b"\r\n\r\nx\r\n--cut--")
    assert (part.name, part.filename, part.content_type, content) == (name, filename, content_type, b"x")


def test_a_part_without_content_may_end_with_its_head() -> None:
    # RFC 2046: body-part := MIME-part-headers [CRLF *OCTET]
    found = split(b"--cut\r\n" + FIELD % b"a" + b"--cut\r\n" + FIELD % b"b" + b"--cut--")
    assert [(part.name, content) for part, content in found] == [("a", b""), ("b", b"")]


def test_the_beginning_of_a_part_can_be_read_alone() -> None:
    file = io.BytesIO(encode([Sent("a", None, (), b"abc")]))
    (part,) = find_parts(file, TYPE)
    assert read_part(file, part, 2) == b"ab"


def test_a_form_may_have_no_parts() -> None:
    assert split(b"--cut--") == []


# -- what is refused -------------------------------------------------------------------------------

WHOLE = "The body is not a complete multipart form: "
NO_NAME = WHOLE + 'a part does not begin with Content-Disposition: form-data; name="...".'
NO_END = WHOLE + "it ends without its last boundary."
NO_HEAD_END = WHOLE + "the head of a part does not end within 2048 bytes."


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", WHOLE + "its boundary does not appear in it."),
        (b"\n--cut\n" + FIELD % b"a" + b"\n--cut--\n", WHOLE + "its boundary does not appear in it."),
        (b"--cut\r\n" + FIELD % b"a" + b"x", NO_END),
        (b"--cut\r\n" + FIELD % b"a" + b"x\r\n--cut\r\n", NO_END),
        (b"--cut\r\nno head\r\n--cut--", NO_HEAD_END),
        (b"--cut\r\n--cut--", NO_HEAD_END),
        (b"--cut\r\nX: %s\r\n" % (b"x" * PART_HEAD_LIMIT) + FIELD % b"a" + b"\r\n--cut--", NO_HEAD_END),
        (b"--cut\r\n\r\nx\r\n--cut--", NO_NAME),
        (b"--cut\r\nX: y\r\n\r\nx\r\n--cut--", NO_NAME),
        (b"--cut\r\nContent-Disposition: attachment; name=a\r\n\r\nx\r\n--cut--", NO_NAME),
        (b"--cut\r\nContent-Disposition: form-data; filename=a\r\n\r\nx\r\n--cut--", NO_NAME),
        (b"--cut\r\nnot a header\r\n" + FIELD % b"a" + b"x\r\n--cut--", NO_NAME),
        (b"--cut\r\nContent-Disposition: form-data; name*=\x00''a\r\n\r\nx\r\n--cut--", NO_NAME),
        (b"--cut\r\nContent-Disposition: form-data; name*=x; name*0=y\r\n\r\nx\r\n--cut--", NO_NAME),
        (b"--cut\r\nContent-Disposition: form-data; name*=idna''%ff\r\n\r\nx\r\n--cut--", NO_NAME),
    ],
)
def test_what_is_not_a_whole_form_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(HttpError) as caught:
        split(body)
    assert (caught.value.http_status, caught.value.type, caught.value.message) == (400, "bad_form", message)


@pytest.mark.parametrize("content_type", ["multipart/form-data", f"x/y; boundary={'b' * (LONGEST_BOUNDARY + 1)}"])
def test_a_form_needs_a_boundary_that_is_not_too_long(content_type: str) -> None:
    with pytest.raises(HttpError) as caught:
        split(b"--\r\n", content_type)
    assert (caught.value.http_status, caught.value.type) == (400, "not_multipart")


@pytest.mark.parametrize("length", [1, LONGEST_BOUNDARY])
def test_the_shortest_and_the_longest_boundary(length: int) -> None:
    boundary = "b" * length
    form = encode([Sent("a", None, (), b"x")], boundary.encode())
    assert len(split(form, f"multipart/form-data; boundary={boundary}")) == 1


def test_the_number_of_parts_has_a_limit() -> None:
    part = Sent("a", None, (), b"x")
    assert len(split(encode([part] * MOST_PARTS))) == MOST_PARTS
    with pytest.raises(HttpError) as caught:
        split(encode([part] * (MOST_PARTS + 1)))
    assert (caught.value.http_status, caught.value.type) == (413, "too_large")


def test_texts_have_a_limit_that_files_do_not_have() -> None:
    half = b"x" * (TEXT_PARTS_LIMIT // 2)
    texts = [Sent("a", None, (), half), Sent("b", None, (), half)]
    assert len(split(encode([*texts, Sent("c", "c.bin", (), half)]))) == 3
    with pytest.raises(HttpError) as caught:
        split(encode([*texts, Sent("c", None, (), b"x")]))
    assert (caught.value.http_status, caught.value.type) == (413, "too_large")


def test_a_large_file_is_not_read_into_memory(tmp_path: object) -> None:
    path = os.path.join(str(tmp_path), "form")
    with open(path, "wb") as file:
        file.write(encode([Sent("a", "a.bin", (), b"\r\n--cu7" * (1 << 20))]))
    with open(path, "rb") as file:
        tracemalloc.start()
        try:
            (part,) = find_parts(file, TYPE)
            assert tracemalloc.get_traced_memory()[1] < 8 * PIECE_OF_BODY
        finally:
            tracemalloc.stop()
        assert part.length == 7 << 20
