"""Pictures that say SIMULATED: drawn, encoded and measured. Pure, but for the file to measure."""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import Iterable, Iterator, NamedTuple, Sequence

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Where a PNG has its width and height: after the signature and the head of the first chunk.
PNG_SIZE = slice(16, 24)
#: What follows them: 8 bits a color, red, green and blue, and no option of the format.
EIGHT_BITS_OF_RGB = bytes([8, 2, 0, 0, 0])
#: What each row of a PNG begins with: none of the filters is applied to it.
NO_FILTER = b"\0"
#: The width and the height of files that are not PNG: nobody looks into them.
SIZE_OF_OTHER_FILES = (512, 512)

#: Pixels from one letter to the next: three of a letter, one between the letters.
COLUMNS_OF_LETTER = 4
ROWS_OF_LETTER = 5
#: Pixels from one line of text to the next: five of a letter, two between the lines.
ROWS_OF_LINE = 7
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
    top, bottom = choose_colors(seed)
    scale = choose_scale(width, height, lines)
    height_of_text = ROWS_OF_LINE * scale * len(lines)
    first_row_of_text = (height - height_of_text) // 2
    for y in range(height):
        paper = blend(top, bottom, y, height)
        row_of_text = (y - first_row_of_text) // scale
        line_number, row_of_line = divmod(row_of_text, ROWS_OF_LINE)
        is_in_line = 0 <= line_number < len(lines)
        is_in_letters = row_of_line < ROWS_OF_LETTER
        if is_in_line and is_in_letters:
            yield draw_row_of_text(width, lines[line_number], row_of_line, scale, paper)
        else:
            yield paper * width


def choose_colors(seed: int) -> tuple[bytes, bytes]:
    """The colors at the top and the bottom of a picture: so dark that white letters are legible."""
    digest = hashlib.sha256(str(seed).encode()).digest()
    dark = bytes(byte // 2 for byte in digest)
    return dark[0:3], dark[3:6]


def blend(top: bytes, bottom: bytes, y: int, height: int) -> bytes:
    """One pixel of the background in row `y`: the color changes evenly from top to bottom."""
    return bytes(above + (below - above) * y // height for above, below in zip(top, bottom))


def choose_scale(width: int, height: int, lines: Sequence[str]) -> int:
    """How many pixels wide a pixel of the font is, so that the lines fit; at least 1."""
    longest = max(len(line) for line in lines)
    columns = COLUMNS_OF_LETTER * longest + 2
    rows = ROWS_OF_LINE * len(lines) + 2
    largest_that_fits = min(width // columns, height // rows)
    return max(1, largest_that_fits)


def draw_row_of_text(width: int, line: str, row: int, scale: int, paper: bytes) -> bytes:
    """One row of a picture through a line of text, which is centered and cut at the right."""
    bits = ""
    for letter in line.upper():
        glyph = FONT.get(letter, UNKNOWN_GLYPH)
        three_bits = f"{int(glyph[row], base=8):03b}"
        bits += three_bits + "0"  # the space between two letters
    pixels = {"0": paper * scale, "1": WHITE * scale}
    text = b"".join(pixels[bit] for bit in bits)
    margin = max(0, (width - len(bits) * scale) // 2)
    whole_row = paper * margin + text + paper * width
    return whole_row[: len(paper) * width]


def encode_png(
    width: int, height: int, rows: Iterable[bytes], texts: Iterable[tuple[str, str]]
) -> bytes:
    """A PNG of 8 bits a color, with (key, text) as tEXt chunks."""
    packer = zlib.compressobj(zlib.Z_BEST_SPEED)
    packed = []
    for row in rows:
        packed.append(packer.compress(NO_FILTER + row))
    packed.append(packer.flush())

    size = struct.pack(">II", width, height)
    chunks = [encode_chunk(b"IHDR", size + EIGHT_BITS_OF_RGB)]
    for key, text in [("Software", "ComfyUI simulator"), *texts]:
        content = key.encode("latin-1", "replace") + b"\0" + text.encode("ascii")
        chunks.append(encode_chunk(b"tEXt", content))
    chunks.append(encode_chunk(b"IDAT", b"".join(packed)))
    chunks.append(encode_chunk(b"IEND", b""))
    return PNG_SIGNATURE + b"".join(chunks)


def encode_chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG: length, name, content, checksum."""
    length = struct.pack(">I", len(content))
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return length + name + content + checksum


def make_label(name: str, size: int = 0) -> bytes:
    """Content for a file that is not a picture: it says what it is, and is padded to `size`."""
    label = f"SIMULATED: {name} of the ComfyUI simulator\n"
    return label.encode().ljust(size, b".")


def measure(path: str) -> Image:
    """The size of a PNG, or a fixed one for any other file, and a seed from its content.

    Raises OSError if the file cannot be read.
    """
    with open(path, "rb") as file:
        content = file.read()
    width, height = SIZE_OF_OTHER_FILES
    size = content[PNG_SIZE]
    is_complete = len(size) == PNG_SIZE.stop - PNG_SIZE.start
    if content.startswith(PNG_SIGNATURE) and is_complete:
        width, height = struct.unpack(">II", size)
    return Image(width, height, zlib.crc32(content))
