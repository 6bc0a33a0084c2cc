"""Pictures that say SIMULATED: drawn, encoded and measured. Pure, but for the file to measure."""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import Iterable, Iterator, NamedTuple, Sequence

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Rows of pixels in a line of text: five of a letter, two between the lines.
ROWS_OF_LETTER, ROWS_OF_LINE = 5, 7
#: A 3x5 font: one octal digit per row, its three bits are the pixels.
GLYPHS = """
    25755 65656 34443 65556 74647 74644 34553 55755 72227 11152 55655 44447 57755 65555
    25552 65644 25573 65655 34216 72222 55557 55552 55775 55255 55222 71247 75557 26227 71747
    71717 55711 74717 74757 71111 75757 75717 00002 02020 00700 11244 00007 00000
"""
FONT = dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:-/_ ", GLYPHS.split()))
UNKNOWN_GLYPH = "77777"
WHITE = b"\xff\xff\xff"


class Image(NamedTuple):
    """All that is known of a simulated picture (or latent): nothing else is ever computed."""

    width: int
    height: int
    seed: int
    batch: int = 1


def draw(
    width: int,
    height: int,
    seed: int,
    lines: Sequence[str],
    texts: Iterable[tuple[str, str]] = (),
) -> bytes:
    """A PNG with `lines` written on colors that depend on `seed`; `texts` become tEXt chunks."""
    return encode_png(width, height, draw_rows(width, height, seed, lines), texts)


def draw_rows(width: int, height: int, seed: int, lines: Sequence[str]) -> Iterator[bytes]:
    """The rows of a picture from top to bottom, three bytes (red, green, blue) a pixel."""
    hashed = hashlib.sha256(str(seed).encode()).digest()
    top = [part // 2 for part in hashed[0:3]]
    bottom = [part // 2 for part in hashed[3:6]]
    scale = choose_scale(width, height, lines)
    height_of_text = ROWS_OF_LINE * scale * len(lines)
    first = (height - height_of_text) // 2
    for y in range(height):
        paper = bytes(
            above + (below - above) * y // height for above, below in zip(top, bottom)
        )  # one pixel of the background
        line, row_of_line = divmod((y - first) // scale, ROWS_OF_LINE)
        has_ink = 0 <= line < len(lines) and row_of_line < ROWS_OF_LETTER
        if has_ink:
            yield draw_row_of_text(width, lines[line], row_of_line, scale, paper)
        else:
            yield paper * width


def choose_scale(width: int, height: int, lines: Sequence[str]) -> int:
    """How many pixels of the picture are one of the font, so that the lines fit, but at least 1."""
    columns = 4 * max(len(line) for line in lines) + 2
    rows = ROWS_OF_LINE * len(lines) + 2
    return max(1, min(width // columns, height // rows))


def draw_row_of_text(width: int, line: str, row: int, scale: int, paper: bytes) -> bytes:
    """One row of a picture through a line of text, which is centered and cut at the right."""
    digits = [FONT.get(letter, UNKNOWN_GLYPH)[row] for letter in line.upper()]
    bits = "".join(f"{int(digit, 8):03b}0" for digit in digits)
    pixels = [WHITE if bit == "1" else paper for bit in bits]
    ink = b"".join(pixel * scale for pixel in pixels)
    left = max(0, (width - len(bits) * scale) // 2)
    return (paper * left + ink + paper * width)[: 3 * width]


def encode_png(
    width: int, height: int, rows: Iterable[bytes], texts: Iterable[tuple[str, str]]
) -> bytes:
    """A PNG of 8 bits a color, with (key, text) as tEXt chunks."""
    packer = zlib.compressobj(1)
    packed = []
    for row in rows:
        packed.append(packer.compress(b"\0" + row))  # b"\0": the row is not filtered
    packed.append(packer.flush())
    size = struct.pack(">II", width, height)
    eight_bits_of_rgb = bytes([8, 2, 0, 0, 0])
    chunks = [encode_chunk(b"IHDR", size + eight_bits_of_rgb)]
    for key, text in [("Software", "ComfyUI simulator"), *texts]:
        content = key.encode("latin-1", "replace") + b"\0" + text.encode("ascii")
        chunks.append(encode_chunk(b"tEXt", content))
    chunks.append(encode_chunk(b"IDAT", b"".join(packed)))
    chunks.append(encode_chunk(b"IEND", b""))
    return PNG_SIGNATURE + b"".join(chunks)


def encode_chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG: length, name, content, checksum."""
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def make_label(name: str, size: int = 0) -> bytes:
    """Content for a file that is not a picture: it says what it is, then is padded to `size`."""
    return f"SIMULATED: {name} of the ComfyUI simulator\n".encode().ljust(size, b".")


def measure(path: str) -> Image:
    """The size of a PNG, or 512 x 512 for any other file, and a seed from its content.

    Raises OSError if the file cannot be read.
    """
    with open(path, "rb") as file:
        content = file.read()
    width, height = 512, 512
    if content.startswith(PNG_SIGNATURE) and len(content) >= 24:
        width, height = struct.unpack(">II", content[16:24])
    return Image(width, height, zlib.crc32(content))
