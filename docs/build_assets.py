"""Makes every picture in _assets/ anew:  python docs/build_assets.py

    python docs/build_assets.py                      all of them
    python docs/build_assets.py --only running       some: a diagram's name, running, console

Diagrams come from the mermaid blocks of docs/ARCHITECTURE.md and docs/COMFYUI_API.md; the line before a block names its
picture: <!-- diagram: NAME -->. The GIF is recorded in a pseudo terminal from a shell in which the real program is
called; the screenshots are taken of the real page. Both run on the simulator (--demo).

Needs Linux or macOS, Python 3.10 or later, Node.js 20 or later with npm, a Chromium or Chrome in PATH, and the font
DejaVu Sans Mono (Debian: apt-get install npm chromium fonts-dejavu-core). Python packages and mermaid-cli are
installed into .venv-assets-* in the project's folder, which git does not see; npm keeps its cache where it always does.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ASSETS = os.path.join(ROOT, "_assets")
HASHES = os.path.join(ASSETS, "diagrams.json")
TOOLS = os.path.join(ROOT, ".venv-assets-%d.%d" % sys.version_info[:2])

DOCUMENTS = (os.path.join("docs", "ARCHITECTURE.md"), os.path.join("docs", "COMFYUI_API.md"))
#: The diagram of the interaction is the first of its document; while that is not there, another one serves.
INTERACTION, INSTEAD = "comfyui_api_interaction", "single_shot"

PYTHON_PACKAGES = ("playwright>=1.49,<2", "pyte==0.8.2", "Pillow>=10.3,<14")
NODE_PACKAGES = ("@mermaid-js/mermaid-cli@11.12.0", "mermaid@11.17.2", "puppeteer@23.11.1")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", os.path.expanduser("~/.fonts"), "/Library/Fonts")


class Diagram(NamedTuple):
    """A mermaid block of a document."""

    name: str
    document: str
    source: str

    @property
    def sha256(self) -> str:
        """By this the pictures are told to be of this source."""
        return hashlib.sha256(self.source.encode()).hexdigest()


def read_text(name: str) -> str:
    """The text of a file of the project."""
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


def diagrams() -> Dict[str, Diagram]:
    """The diagrams of the documents by the names of their pictures. Raises ValueError for one without a name."""
    found: Dict[str, Diagram] = {}
    for document in DOCUMENTS:
        if not os.path.exists(os.path.join(ROOT, document)):
            continue
        blocks = re.findall(r"(?:<!-- diagram: (\w+) -->\s*)?```mermaid\n(.*?)```", read_text(document), re.S)
        for name, source in blocks:
            if not name and document != DOCUMENTS[0] and INTERACTION not in found:
                name = INTERACTION
            if not name:
                raise ValueError("%s: a mermaid block has no <!-- diagram: NAME --> before it." % document)
            if name in found:
                raise ValueError("%s: there are two diagrams %s." % (document, name))
            found[name] = Diagram(name, document.replace(os.sep, "/"), source)
    if INTERACTION not in found and INSTEAD in found:
        found[INTERACTION] = found[INSTEAD]._replace(name=INTERACTION)
    return found


# ------------------------------------------------------------------------------------------------
# Tools
# ------------------------------------------------------------------------------------------------


def find_browser() -> str:
    """The path of a Chromium or Chrome."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise SystemExit("No Chromium: none of %s is in PATH." % ", ".join(BROWSERS))
    return path


def find_font(name: str) -> str:
    """The path of a font's file."""
    for folder in FONT_FOLDERS:
        for place, _, files in os.walk(folder):
            if name in files:
                return os.path.join(place, name)
    raise SystemExit("The font %s is missing (Debian: apt-get install fonts-dejavu-core)." % name)


def tools() -> str:
    """The Python of the tools' virtual environment; it is made if it is not there or is out of date."""
    if sys.version_info < (3, 10) or os.name == "nt":
        raise SystemExit("This needs Python 3.10 or later, on Linux or macOS.")
    if shutil.which("npm") is None:
        raise SystemExit("npm is missing; it comes with Node.js (20 or later).")
    find_browser()
    find_font("DejaVuSansMono.ttf")
    wanted = json.dumps([sys.version, PYTHON_PACKAGES, NODE_PACKAGES, read_text("requirements.txt")])
    python, stamp = os.path.join(TOOLS, "bin", "python"), os.path.join(TOOLS, "made-from")
    if os.path.exists(python) and os.path.exists(stamp) and read_text(stamp) == wanted:
        return python
    shutil.rmtree(TOOLS, ignore_errors=True)
    print("Making %s ..." % os.path.basename(TOOLS), flush=True)
    venv.create(TOOLS, symlinks=True, with_pip=True)  # copies of some Pythons do not start
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *PYTHON_PACKAGES, "-r", os.path.join(ROOT, "requirements.txt")], check=True)
    npm = ["npm", "install", "--prefix", TOOLS, "--no-audit", "--no-fund", "--loglevel=error"]
    without_browser = {**os.environ, "PUPPETEER_SKIP_DOWNLOAD": "1"}
    subprocess.run([*npm, *NODE_PACKAGES], env=without_browser, check=True)
    with open(stamp, "w", encoding="utf-8", newline="\n") as file:
        file.write(wanted)
    return python


@contextlib.contextmanager
def folder_with_the_program() -> Iterator[str]:
    """A folder in which the program is called as somebody calls it who has just fetched it."""
    with tempfile.TemporaryDirectory(prefix="workflow-runner-") as folder:
        for name in os.listdir(ROOT):
            if not name.startswith(".") and name != "output":
                os.symlink(os.path.join(ROOT, name), os.path.join(folder, name))
        yield folder


def clean_environment(**more: str) -> Dict[str, str]:
    """This environment without what changes how the program behaves or is shown."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COMFYUI_", "PYTHON", "LC_"))}
    for name in ("NO_COLOR", "COLUMNS", "LINES", "PROMPT_COMMAND", "ENV", "BASH_ENV"):
        kept.pop(name, None)
    path = os.path.dirname(sys.executable) + os.pathsep + kept["PATH"]
    return {**kept, "PATH": path, "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", **more}


# ------------------------------------------------------------------------------------------------
# Diagrams
# ------------------------------------------------------------------------------------------------

#: Labels are SVG text, which every viewer shows (HTML in an SVG is shown by browsers alone).
MERMAID: Dict[str, Any] = {
    "theme": "base",
    "htmlLabels": False,
    "handDrawnSeed": 1,
    "fontFamily": "DejaVu Sans, Verdana, sans-serif",
    "themeVariables": {
        "fontFamily": "DejaVu Sans, Verdana, sans-serif",
        "fontSize": "14px",
        "background": "#ffffff",
        "primaryColor": "#e8f0fe",
        "primaryTextColor": "#1f2328",
        "primaryBorderColor": "#4a74c9",
        "lineColor": "#57606a",
        "secondaryColor": "#eef6ee",
        "tertiaryColor": "#f6f8fa",
        "clusterBkg": "#f6f8fa",
        "clusterBorder": "#afb8c1",
        "edgeLabelBackground": "#ffffff",
        "noteBkgColor": "#fff8dc",
        "noteBorderColor": "#d4a72c",
        "labelBoxBkgColor": "#eef6ee",
        "labelBoxBorderColor": "#57606a",
        "activationBkgColor": "#d0def8",
    },
    "flowchart": {"htmlLabels": False, "useMaxWidth": False, "curve": "basis", "padding": 12, "wrappingWidth": 420},
    "sequence": {"useMaxWidth": False, "mirrorActors": True, "wrap": False, "messageAlign": "center"},
}


def draw_diagram(diagram: Diagram) -> None:
    """NAME.svg and NAME.png, and the source's hash in diagrams.json."""
    mmdc = os.path.join(TOOLS, "node_modules", ".bin", "mmdc")
    with tempfile.TemporaryDirectory(prefix="assets-") as folder:
        source, config, browser = (os.path.join(folder, name) for name in ("d.mmd", "mermaid.json", "puppeteer.json"))
        with open(source, "w", encoding="utf-8", newline="\n") as file:
            file.write(diagram.source)
        with open(config, "w", encoding="utf-8", newline="\n") as file:
            json.dump(MERMAID, file)
        with open(browser, "w", encoding="utf-8", newline="\n") as file:
            json.dump({"executablePath": find_browser(), "args": ["--no-sandbox", "--disable-gpu"]}, file)
        for ending in ("svg", "png"):
            target = os.path.join(ASSETS, diagram.name + "." + ending)
            command = [mmdc, "-q", "-i", source, "-o", target, "-c", config, "-p", browser, "-b", "white"]
            command += ["-s", "2"] if ending == "png" else ["-I", diagram.name]
            subprocess.run(command, env=clean_environment(), check=True)
    shrink(os.path.join(ASSETS, diagram.name + ".png"), 128)
    svg = os.path.join(ASSETS, diagram.name + ".svg")
    text = re.sub(r"\d+\.\d{3,}", lambda number: "%.2f" % float(number[0]), read_text(svg))  # a hundredth of a pixel
    with open(svg, "w", encoding="utf-8", newline="\n") as file:
        file.write(text.rstrip() + "\n")
    hashes = json.loads(read_text(HASHES)) if os.path.exists(HASHES) else {}
    hashes[diagram.name] = {"document": diagram.document, "sha256": diagram.sha256}
    known = diagrams()
    with open(HASHES, "w", encoding="utf-8", newline="\n") as file:
        json.dump({name: hashes[name] for name in sorted(hashes) if name in known}, file, indent=2)
        file.write("\n")


def shrink(path: str, colours: int) -> None:
    """Fewer colours, where nobody sees it."""
    from PIL import Image

    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


# ------------------------------------------------------------------------------------------------
# The GIF
# ------------------------------------------------------------------------------------------------

COLUMNS, LINES, FONT_SIZE, MARGIN, FRAME = 104, 23, 17, 16, 0.1
COMMAND = 'python comfyui_workflow_runner.py --demo -p "a red fox in deep snow" -o results'
BACKGROUND, FOREGROUND, DIM = "#1e2228", "#d8dee9", "#5c6675"
COLOURS = {"default": FOREGROUND, "dim": DIM,
           "green": "#98c379", "red": "#e06c75", "brown": "#e5c07b", "yellow": "#e5c07b", "blue": "#61afef",
           "cyan": "#56b6c2", "magenta": "#c678dd", "white": "#d8dee9", "black": "#1e2228"}  # fmt: skip


def record() -> List[Tuple[float, bytes]]:
    """What a terminal is sent, and when, while somebody types COMMAND into a shell and answers y."""
    import fcntl
    import pty
    import select
    import struct
    import termios

    with folder_with_the_program() as folder:
        environment = clean_environment(
            TERM="xterm-256color", PS1="$ ", HISTFILE="", BASH_SILENCE_DEPRECATION_WARNING="1"
        )
        child, terminal = pty.fork()
        if not child:
            os.chdir(folder)
            os.execvpe("bash", ["bash", "--noprofile", "--norc"], environment)
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        began = time.monotonic()
        seen: List[Tuple[float, bytes]] = []

        def watch(seconds: float, until: bytes = b"") -> None:
            """Reads for so long, or until these bytes were sent."""
            end, text = time.monotonic() + seconds, b""
            while time.monotonic() < end:
                ready, _, _ = select.select([terminal], [], [], max(end - time.monotonic(), 0))
                if ready:
                    data = os.read(terminal, 65536)
                    seen.append((time.monotonic() - began, data))
                    text += data
                if until and until in text:
                    return
            if until:
                raise SystemExit("The terminal never showed %r, but: %s" % (until, text.decode(errors="replace")))

        watch(10, b"$ ")
        watch(0.7)
        for letter in COMMAND:
            os.write(terminal, letter.encode())
            watch(0.03)
        watch(0.4)
        os.write(terminal, b"\r")
        watch(20, b"[y/N] ")
        watch(2.2)
        os.write(terminal, b"y")
        watch(0.3)
        os.write(terminal, b"\r")
        watch(60, b"$ ")
        watch(0.3)
        os.write(terminal, b"exit\r")
        length = len(seen)
        with contextlib.suppress(OSError):  # so it ends on Linux
            watch(5)
        os.close(terminal)
        os.waitpid(child, 0)
        if not os.listdir(os.path.join(folder, "results")):
            raise SystemExit("The run saved nothing.")
    return seen[:length]


def frames(recording: Iterable[Tuple[float, bytes]]) -> Iterator[Tuple[float, Any, Tuple[int, int]]]:
    """The screens that the recording leads to: when, the rows of characters, the cursor."""
    import pyte

    class Screen(pyte.Screen):
        """Knows dim text, which pyte leaves out."""

        def select_graphic_rendition(self, *attributes: int, **options: Any) -> None:
            super().select_graphic_rendition(*attributes, **options)
            if 2 in attributes and 38 not in attributes and 48 not in attributes:
                self.cursor.attrs = self.cursor.attrs._replace(fg="dim")

    screen = Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    shown: Any = None
    waiting: List[Tuple[float, bytes]] = list(recording)
    tick = 0.0
    while waiting:
        tick += FRAME
        while waiting and waiting[0][0] <= tick:
            stream.feed(waiting.pop(0)[1])
        rows = [[screen.buffer[y][x] for x in range(COLUMNS)] for y in range(LINES)]
        cursor = (-1, -1) if screen.cursor.hidden else (screen.cursor.x, screen.cursor.y)
        if (rows, cursor) != shown:
            shown = (rows, cursor)
            yield tick, rows, cursor


def colour_of(name: str) -> str:
    """The colour of text that the terminal was told to show in ``name``: a word, or hex digits."""
    if name in COLOURS:
        return COLOURS[name]
    return f"#{name}"


def make_gif() -> None:
    """running.gif: the recording as it was shown, in its own time."""
    from PIL import Image, ImageDraw, ImageFont

    plain = ImageFont.truetype(find_font("DejaVuSansMono.ttf"), FONT_SIZE)
    bold = ImageFont.truetype(find_font("DejaVuSansMono-Bold.ttf"), FONT_SIZE)
    across, down = round(plain.getlength("M")), round(FONT_SIZE * 1.3)
    size = (COLUMNS * across + 2 * MARGIN, LINES * down + 2 * MARGIN)
    pictures, times = [], []
    for at, rows, cursor in frames(record()):
        picture = Image.new("RGB", size, BACKGROUND)
        draw = ImageDraw.Draw(picture)
        for y, row in enumerate(rows):
            for x, cell in enumerate(row):
                place = (MARGIN + x * across, MARGIN + y * down)
                if (x, y) == cursor:
                    draw.rectangle((place[0], place[1], place[0] + across - 1, place[1] + down - 2), fill=FOREGROUND)
                if cell.data.strip():
                    draw.text(place, cell.data, font=bold if cell.bold else plain, fill=colour_of(cell.fg))
        pictures.append(picture)
        times.append(at)
    sample = Image.new("RGB", (size[0], size[1] * 2))  # the last screen and one with bars have every colour
    sample.paste(pictures[-1], (0, 0))
    sample.paste(pictures[len(pictures) * 3 // 4], (0, size[1]))
    colours = sample.quantize(48, method=Image.Quantize.MEDIANCUT)
    flat = [picture.quantize(palette=colours, dither=Image.Dither.NONE) for picture in pictures]
    lengths = [max(round((after - at) * 1000), 20) for at, after in zip(times, times[1:], strict=False)] + [3000]
    path = os.path.join(ASSETS, "running.gif")
    flat[0].save(path, save_all=True, append_images=flat[1:], duration=lengths, loop=0, optimize=False)
    print("running.gif: %d frames, %.1f s" % (len(flat), sum(lengths) / 1000))


# ------------------------------------------------------------------------------------------------
# The page
# ------------------------------------------------------------------------------------------------


def free_port(wished: int) -> int:
    """``wished`` if nobody listens there, else another one."""
    for port in (wished, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise SystemExit("There is no free port.")


@contextlib.contextmanager
def service() -> Iterator[str]:
    """Continuous mode on the simulator: its URL."""
    port = free_port(8189)
    with folder_with_the_program() as folder:
        command = [sys.executable, "comfyui_workflow_runner.py", "--demo", "--mode", "continuous", "--port", str(port)]
        process = subprocess.Popen(
            command, cwd=folder, env=clean_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            for _ in range(200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                if process.poll() is not None:
                    raise SystemExit("Continuous mode did not start.")
                time.sleep(0.1)
            yield "http://127.0.0.1:%d" % port
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def take_screenshots() -> None:
    """console_light.png (a run under way), console_dark.png (it is done) and console_phone.png."""
    from playwright.sync_api import expect, sync_playwright

    desk: Dict[str, Any] = {"viewport": {"width": 1280, "height": 980}, "device_scale_factor": 1.25}
    phone: Dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True}
    with service() as url, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"])

        def visit(scheme: str, options: Dict[str, Any]) -> Any:
            page = browser.new_context(color_scheme=scheme, **options).new_page()
            page.goto(url + "/")
            expect(page.locator("#server")).to_contain_text("ComfyUI 0.")
            expect(page.get_by_label("Positive Prompt")).to_be_visible()
            return page

        def run(page: Any, text: str) -> None:
            page.get_by_label("Positive Prompt").fill(text)
            page.get_by_role("button", name="Run", exact=True).click()

        def half_done(page: Any) -> None:
            expect(page.locator("#preview")).to_be_visible(timeout=30_000)
            while not re.search(r"1[3-9] of 25", page.locator("#progress").text_content()):
                page.wait_for_timeout(50)

        def take(page: Any, name: str) -> None:
            path = os.path.join(ASSETS, name + ".png")
            page.screenshot(path=path, animations="disabled")
            shrink(path, 256)

        page = visit("light", desk)
        run(page, "a small white lighthouse on a rocky coast at dawn")
        expect(page.locator("#state")).to_contain_text("Done", timeout=30_000)
        run(page, "a red fox in deep snow, soft morning light")
        half_done(page)
        page.evaluate("scrollTo(0, 0)")
        take(page, "console_light")
        expect(page.locator("#state")).to_contain_text("Done", timeout=30_000)
        dark = visit("dark", desk)
        expect(dark.locator("#outputs figure")).to_have_count(1)
        dark.wait_for_timeout(500)
        take(dark, "console_dark")
        small = visit("light", phone)
        run(small, "a harbour in the evening, lanterns, light rain")
        half_done(small)
        take(small, "console_phone")
        browser.close()


# ------------------------------------------------------------------------------------------------


def build(names: Optional[List[str]]) -> None:
    """Makes the pictures of these names, or all."""
    drawn = diagrams()
    makers = {"running": make_gif, "console": take_screenshots}
    for name in names or [*drawn, *makers]:
        if name not in drawn and name not in makers:
            raise SystemExit("There is no picture %s, but: %s." % (name, ", ".join([*drawn, *makers])))
        print(name, flush=True)
        if name in drawn:
            draw_diagram(drawn[name])
        else:
            makers[name]()


def main() -> int:
    """Makes the tools if need be, and goes on in their environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", action="append", help="make this one; repeatable")
    options = parser.parse_args()
    os.makedirs(ASSETS, exist_ok=True)
    python = tools()
    if os.path.realpath(sys.prefix) != os.path.realpath(TOOLS):
        return subprocess.run([python, os.path.abspath(__file__), *sys.argv[1:]], check=False).returncode
    build(options.only)
    size = sum(entry.stat().st_size for entry in os.scandir(ASSETS))
    print("_assets: %.2f MB" % (size / 1e6))
    return 0


if __name__ == "__main__":
    sys.exit(main())
