"""What the bytes of a file are, for messages: a picture, a web page, text in another encoding."""

from __future__ import annotations

import codecs
import re
from typing import NamedTuple, Optional


class Signature(NamedTuple):
    """How files of one kind begin: ``beginning`` is at ``position``."""

    position: int
    beginning: bytes
    kind: str  # in words
    is_picture: bool = False
    ending: str = ""  # of the names of such files, where nodes send them


#: The first one that fits counts. Most are from the lists of file signatures of libmagic.
_SIGNATURES = (
    Signature(0, b"\x89PNG\r\n\x1a\n", "a PNG picture", True, "png"),
    Signature(0, b"\xff\xd8\xff", "a JPEG picture", True, "jpg"),
    Signature(0, b"GIF8", "a GIF picture", True, "gif"),
    Signature(8, b"WEBPVP8", "a WebP picture", True, "webp"),
    Signature(0, b"II*\0", "a TIFF picture", True),
    Signature(0, b"MM\0*", "a TIFF picture", True),
    Signature(0, b"II+\0", "a TIFF picture", True),
    Signature(4, b"ftypavi", "an AVIF picture", True, "avif"),
    Signature(4, b"ftyphei", "a HEIC picture", True),
    Signature(4, b"ftypmif1", "a HEIF picture", True),
    Signature(0, b"\xff\x0a", "a JPEG XL picture", True),
    Signature(4, b"JXL \r\n\x87\n", "a JPEG XL picture", True),
    Signature(4, b"jP  \r\n\x87\n", "a JPEG 2000 picture", True),
    Signature(0, b"8BPS", "a Photoshop picture", True),
    Signature(0, b"v/1\x01", "an OpenEXR picture", True),
    Signature(0, b"#?R", "an HDR picture", True),
    Signature(0, b"DDS ", "a DDS picture", True),
    Signature(0, b"qoif", "a QOI picture", True),
    Signature(0, b"\0\0\x01\0", "an icon", True),
    Signature(4, b"ftypM4A ", "an M4A sound", ending="m4a"),
    Signature(4, b"ftyp", "an MP4 video", ending="mp4"),
    Signature(0, b"\x1aE\xdf\xa3", "a WebM or Matroska video", ending="webm"),
    Signature(8, b"AVI ", "an AVI video"),
    Signature(8, b"WAVE", "a WAV sound", ending="wav"),
    Signature(0, b"OggS", "an Ogg sound", ending="ogg"),
    Signature(0, b"fLaC", "a FLAC sound", ending="flac"),
    Signature(0, b"ID3", "an MP3 sound", ending="mp3"),
    Signature(0, b"glTF", "a glTF model", ending="glb"),
    Signature(0, b"%PDF", "a PDF document"),
    Signature(0, b"PK\x03\x04", "a ZIP archive"),
    Signature(0, b"\x1f\x8b", "a gzip archive"),
    Signature(0, b"7z\xbc\xaf", "a 7-Zip archive"),
    Signature(0, b"Rar!", "a RAR archive"),
)

#: PBM, PGM, PPM, PAM and PFM pictures.
_is_portable_map = re.compile(rb"P[1-6Ff]\s+[#\d]|P7\nWIDTH ").match

#: A web page, whatever comes before its first tag: a comment, a blank line.
_is_web_page = re.compile(
    rb"(?is)(\xef\xbb\xbf|\s|<!--.*?-->|<\?xml.*?\?>)*<(!doctype html|html|head|body|script)\b"
).match

#: Bytes that no text has, in any encoding but UTF-16 and UTF-32.
_has_control_characters = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]").search

#: This many bytes from the beginning of a file are enough to recognize it.
HEAD_SIZE = 1024


class Content(NamedTuple):
    """What a file is, in words ("a JPEG picture", "" if not known), and whether it is a picture."""

    kind: str
    is_picture: bool = False


def find_signature(head: bytes) -> Optional[Signature]:
    """The signature with which a file begins whose first bytes are ``head``."""
    for signature in _SIGNATURES:
        if head.startswith(signature.beginning, signature.position):
            return signature
    return None


def describe_content(head: bytes) -> Content:
    """What a file is whose first bytes are ``head``."""
    head = head[:HEAD_SIZE]
    if not head.lstrip(b"\xef\xbb\xbf \t\r\n"):
        return Content("empty")
    is_bitmap = head.startswith(b"BM") and head[6:10] == b"\0\0\0\0"
    if is_bitmap:
        return Content("a BMP picture", is_picture=True)
    if _is_portable_map(head):
        return Content("a PNM picture", is_picture=True)
    signature = find_signature(head)
    if signature is not None:
        return Content(signature.kind, signature.is_picture)
    if _is_web_page(head):
        return Content("a web page")
    return Content("")


def why_no_picture(head: bytes) -> str:
    """What a file is instead of a picture, as far as its first bytes say; "" for a picture."""
    content = describe_content(head)
    if content.is_picture:
        return ""
    if content.kind:
        return f"it is {content.kind}"
    if _has_control_characters(head):
        return "its format is not known"
    return "it is text"


def text_encoding(head: bytes) -> str:
    """How to read text whose first bytes are ``head``: as UTF-16 by its mark, else as UTF-8.

    Windows PowerShell writes UTF-16 with a mark (``>``, Out-File), and so does a spreadsheet that
    saves as "Unicode text".
    """
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return "utf-8-sig"


def guess_encoding(data: bytes) -> str:
    """The encoding of text that is not in UTF-8: "UTF-16", "GBK" or "Windows-1252".

    "" for what is not text. GBK is a guess by its pairs of bytes, of which the second one is mostly
    above 0xA0 too: letters with accents are seldom neighbors. Where they are ("Größe"), the first
    one is mostly a small letter, above 0xD7, and there GBK has its rare characters.
    """
    is_utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or (
        len(data) > 1 and 0 in data[:2] and data[:2] != b"\0\0"
    )
    if is_utf_16:
        return "UTF-16"
    if _has_control_characters(data):
        return ""

    high_bytes = sum(byte > 0x7F for byte in data)
    pairs = re.findall(rb"[\x81-\xfe][\xa1-\xfe]", data)
    common_pairs = [pair for pair in pairs if pair[0] <= 0xD7]
    is_gbk = (
        len(pairs) * 2 > high_bytes * 0.8  # few letters are without a neighbor
        and len(common_pairs) * 2 > len(pairs)
        and _decodes(data, "gbk")
    )
    if is_gbk:
        return "GBK"
    return "Windows-1252"


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def save_as_utf_8(encoding: str) -> str:
    """What to do with text that is in ``encoding`` ("" for one that is not known)."""
    remedy = (
        "Save it as UTF-8 (in an editor: Save as, Encoding; in a spreadsheet: save as CSV UTF-8)"
    )
    if not encoding:
        return f"{remedy}."
    iconv_name = {"Windows-1252": "CP1252"}.get(encoding, encoding)
    return f"{remedy}, or convert it: iconv -f {iconv_name} -t UTF-8 FILE > NEW."
