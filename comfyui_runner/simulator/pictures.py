"""Pictures that say SIMULATED: drawn, measured, and the content of other files."""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import Iterable, NamedTuple, Sequence


class Image(NamedTuple):
    """All that is known of a simulated picture (or latent): nothing else is ever computed."""

    width: int
    height: int
    seed: int
    batch: int = 1


#: A 3x5 font: one octal digit per row, its three bits are the pixels.
_GLYPHS = """25755 65656 34443 65556 74647 74644 34553 55755 72227 11152 55655 44447 57755 65555
    25552 65644 25573 65655 34216 72222 55557 55552 55775 55255 55222 71247 75557 26227 71747
    71717 55711 74717 74757 71111 75757 75717 00002 02020 00700 11244 00007 00000"""
_FONT = dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:-/_ ", _GLYPHS.split()))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def draw(width: int, height: int, seed: int, lines: Sequence[str], texts: Iterable[tuple[str, str]] = ()) -> bytes:
    """A PNG with `lines` written on colours that depend on `seed`; `texts` become tEXt chunks."""
    colours = hashlib.sha256(str(seed).encode()).digest()
    top, bottom = ([part // 2 for part in colours[at : at + 3]] for at in (0, 3))
    scale = min(width // (4 * max(map(len, lines)) + 2), height // (7 * len(lines) + 2))
    scale = max(1, scale)
    first = (height - 7 * scale * len(lines)) // 2
    packer, packed = zlib.compressobj(1), []
    for y in range(height):
        paper = bytes(a + (b - a) * y // height for a, b in zip(top, bottom))
        row = paper * width
        line, within = divmod((y - first) // scale, 7)
        if 0 <= line < len(lines) and within < 5:
            glyphs = (_FONT.get(char, "77777")[within] for char in lines[line].upper())
            bits = "".join(f"{int(digit, 8):03b}0" for digit in glyphs)
            ink = b"".join((b"\xff\xff\xff" if bit == "1" else paper) * scale for bit in bits)
            left = max(0, (width - len(bits) * scale) // 2) * 3
            row = (row[:left] + ink + row[left + len(ink) :])[: 3 * width]
        packed.append(packer.compress(b"\0" + row))
    packed.append(packer.flush())
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    for key, text in (("Software", "ComfyUI simulator"), *texts):
        chunks.append((b"tEXt", key.encode("latin-1", "replace") + b"\0" + text.encode("ascii")))
    chunks += [(b"IDAT", b"".join(packed)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def label(name: str, size: int = 0) -> bytes:
    """Content for a file that is not a picture: it says what it is, then is padded to `size`."""
    return f"SIMULATED: {name} of the ComfyUI simulator\n".encode().ljust(size, b".")


def measure(path: str) -> Image:
    """Size and seed for an image file: of a PNG its own size, else 512 x 512."""
    with open(path, "rb") as file:
        data = file.read()
    width, height = 512, 512
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
    return Image(width, height, zlib.crc32(data))
