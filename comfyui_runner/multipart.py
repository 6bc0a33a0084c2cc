"""The parts of a multipart/form-data body: found in one pass over its file, read when wanted. Pure.

The bytes between two delimiters are the content, whatever the head of the part says about them: a
``Content-Transfer-Encoding`` is not undone (RFC 7578, section 4.7), and ``message/rfc822`` or
``multipart/mixed`` is not parsed. Only the heads go through the ``email`` package, because it would
change such contents.
"""

from __future__ import annotations

import email.message
import email.parser
import email.utils
import re
from typing import BinaryIO, Iterator, List, NamedTuple, Optional, Tuple

from comfyui_runner.messages import JSON_LIMIT, HttpError
from comfyui_runner.text import size_in_words

#: The largest body in bytes, for a route that accepts a form.
MULTIPART_LIMIT = 64 << 20

#: The most characters of a boundary (RFC 2046, section 5.1.1).
LONGEST_BOUNDARY = 70

MOST_PARTS = 200

#: The most bytes of a part's head.
PART_HEAD_LIMIT = 2048

#: The most bytes of all parts together that are not files: they are read into memory, as a body in
#: JSON is.
TEXT_PARTS_LIMIT = JSON_LIMIT

#: Spaces and tabs that may follow a boundary on its line ("transport padding").
LONGEST_PADDING = 32

#: Bytes of a body that are looked through at a time.
PIECE_OF_BODY = 1 << 18


class FormPart(NamedTuple):
    """A part of a form, and where in the file its content lies."""

    name: str
    filename: Optional[str]  # None: it is a text and not a file
    content_type: str  # in lower case, without parameters; "" if its head does not state one
    offset: int
    length: int  # in bytes


class _Delimiter(NamedTuple):
    """A line between two parts, and where in the file it is."""

    start: int  # at the line break before it
    end: int  # before the line break after it
    is_last: bool  # no part follows


def boundary_in(content_type: str) -> bytes:
    """What separates the parts of a form, b"" if its type does not state it."""
    match = re.search(r'(?i);\s*boundary=(?:"([^"]+)"|([^;\s]+))', content_type)
    if match is None:
        return b""
    quoted, plain = match.groups()
    boundary: str = quoted or plain
    return boundary.encode()


def find_parts(file: BinaryIO, content_type: str) -> List[FormPart]:
    """The parts of the form in ``file``, in their order; their contents stay in the file.

    ``content_type`` is the value of the request's header. A name may appear several times. Raises
    HttpError: 400 for what is not a whole form, 413 for one with too many or too large parts.
    """
    boundary = boundary_in(content_type)
    if not 1 <= len(boundary) <= LONGEST_BOUNDARY:
        message = "The Content-Type of a form must contain a boundary of at most 70 characters."
        raise HttpError(400, "not_multipart", message)

    spans = _find_spans(file, boundary)
    parts = [_read_head(file, start, end) for start, end in spans]
    texts_size = sum(part.length for part in parts if part.filename is None)
    if texts_size > TEXT_PARTS_LIMIT:
        limit = size_in_words(TEXT_PARTS_LIMIT)
        raise HttpError(413, "too_large", f"The texts of the form are larger than {limit}.")
    return parts


def read_part(file: BinaryIO, part: FormPart, most_bytes: int = MULTIPART_LIMIT) -> bytes:
    """The content of ``part``, as it came; of a larger one the first ``most_bytes``."""
    file.seek(part.offset)
    return file.read(min(part.length, most_bytes))


# -- where the parts are ---------------------------------------------------------------------------


def _find_spans(file: BinaryIO, boundary: bytes) -> List[Tuple[int, int]]:
    """Where each part begins, at the line break before its head, and where it ends.

    What precedes the first delimiter or follows the last one is not a part (RFC 2046).
    """
    spans: List[Tuple[int, int]] = []
    start: Optional[int] = None  # of the part that the next delimiter ends
    for delimiter in _find_delimiters(file, boundary):
        if start is not None:
            spans.append((start, delimiter.start))
        if delimiter.is_last:
            return spans
        if len(spans) == MOST_PARTS:
            raise HttpError(413, "too_large", f"The form has more than {MOST_PARTS} parts.")
        start = delimiter.end
    if start is None:
        raise _bad_form("its boundary does not appear in it")
    raise _bad_form("it ends without its last boundary")


def _find_delimiters(file: BinaryIO, boundary: bytes) -> Iterator[_Delimiter]:
    """The delimiters in ``file``, in their order. It is read in pieces, in a moving window."""
    pattern = _delimiter_pattern(boundary)
    longest = len("\r\n--") + len(boundary) + len("--") + LONGEST_PADDING + len("\r\n")

    file.seek(0)
    window = b"\r\n"  # so that a delimiter at the very beginning is like the others
    window_start = -len(window)
    is_end = False
    while not is_end:
        piece = file.read(PIECE_OF_BODY)
        window += piece
        is_end = not piece
        searched = len(window)
        if not is_end:
            # A delimiter that begins later may not be in the window to its end.
            searched = max(len(window) - longest, 0)
        for match in pattern.finditer(window):
            if match.start() < searched:
                start, end = window_start + match.start(), window_start + match.end()
                yield _Delimiter(start, end, is_last=match[1] == b"--")
        window = window[searched:]
        window_start += searched


def _delimiter_pattern(boundary: bytes) -> "re.Pattern[bytes]":
    """What a delimiter looks like; group 1 is "--" for the last one.

    After the boundary may come spaces, and then the end of the line must come: other lines that
    begin like a delimiter belong to the content of a part.
    """
    padding = rb"[ \t]{0,%d}" % LONGEST_PADDING
    last = rb"--(?=%b(?:[\r\n]|\Z))" % padding
    not_last = rb"(?=%b\r\n)" % padding
    return re.compile(rb"\r\n--%b(%b|%b)" % (re.escape(boundary), last, not_last))


# -- heads -----------------------------------------------------------------------------------------


def _read_head(file: BinaryIO, start: int, end: int) -> FormPart:
    """The part between two delimiters, from the end of the first to the start of the second."""
    # A part without content may end with its head: the line break that ends the empty line is then
    # the one that the delimiter begins with.
    length = end - start + len("\r\n")
    file.seek(start)
    beginning = file.read(min(length, PART_HEAD_LIMIT))
    head, empty_line, _ = beginning.partition(b"\r\n\r\n")
    if not empty_line:
        raise _bad_form(f"the head of a part does not end within {PART_HEAD_LIMIT} bytes")

    name, filename, content_type = _parse_part_head(head)
    offset = min(start + len(head) + len(empty_line), end)
    return FormPart(name, filename, content_type, offset, end - offset)


def _parse_part_head(head: bytes) -> Tuple[str, Optional[str], str]:
    """Name, name of the file (None for a text) and content type of the part with this ``head``.

    It begins with the end of the delimiter's line. Names are in UTF-8 (RFC 7578, section 5.1).
    """
    _, _, lines = head.partition(b"\r\n")
    try:
        message = email.parser.HeaderParser().parsestr(lines.decode(errors="replace"))
        is_field = message.get_content_disposition() == "form-data"
        name = _read_parameter(message, "name")
        filename = _read_parameter(message, "filename")
    except (ValueError, TypeError):
        # Parameters as in RFC 2231 that the email package cannot handle: a charset that does not
        # exist (name*=punycode''…), or pieces with and without a number (name*;name*0).
        is_field, name, filename = False, None, None
    if not is_field or name is None:
        raise _bad_form('a part does not begin with Content-Disposition: form-data; name="..."')

    content_type = ""
    if "content-type" in message:
        content_type = message.get_content_type()
    return name, filename, content_type


def _read_parameter(message: email.message.Message, name: str) -> Optional[str]:
    """A parameter of the Content-Disposition; None if it is missing."""
    value = message.get_param(name, header="content-disposition")
    if value is None:
        return None
    return email.utils.collapse_rfc2231_value(value)


def _bad_form(reason: str) -> HttpError:
    return HttpError(400, "bad_form", f"The body is not a complete multipart form: {reason}.")
