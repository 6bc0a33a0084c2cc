"""When the page of continuous mode is there, with 1,000 runs in its list:  python tests/bench_page.py

Prints its figures with their bars and exits with 1 if one is missed:

- the first paint with content, by the browser's own PerformancePaintTiming;
- the first paint that has runs in the list, and the form.

The service and the simulator are processes of their own, the browser is a Chromium that has opened the page once. Each
figure is the lower quartile, as other work on the machine makes it only longer.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from typing import Any, List

from bench_middleware import ROOT, SIMULATOR, Process, Row, ask, fill_state, picture_prompt, show_rows, start_middleware
from browsers import CHROMIUM, find_browser

RUNS = 1000
VISITS = 12

#: Notes when the page has been painted with runs and form: it runs before the page's own script.
WATCH = """
window.shown = new Promise((resolve) => {
    const look = () => {
        if (!document.querySelector("#runs li") || !document.querySelector("[data-input]")) return;
        observer.disconnect();
        requestAnimationFrame(() => setTimeout(() => resolve(performance.now())));
    };
    const observer = new MutationObserver(look);
    observer.observe(document, { childList: true, subtree: true });
});
"""

PAINTED = """async () => {
    const shown = await window.shown;
    return [performance.getEntriesByName("first-contentful-paint")[0].startTime, shown];
}"""


def visit(browser: Any, url: str) -> List[float]:
    """Milliseconds from the start of the navigation to the first paint, and to that of the runs."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    try:
        page = context.new_page()
        page.add_init_script(WATCH)
        page.goto(url)
        return [float(milliseconds) for milliseconds in page.evaluate(PAINTED)]
    finally:
        context.close()


def bench_page(chromium: str, url: str) -> List[Row]:
    """The page, opened by a browser that is running already."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        visit(browser, url)
        visits = [visit(browser, url) for _ in range(VISITS)]
        browser.close()
    painted, shown = (list(each) for each in zip(*visits))
    return [make_row("first paint", painted, 300.0), make_row("first paint of the runs", shown, 1500.0)]


def make_row(name: str, milliseconds: List[float], bar: float) -> Row:
    figures = "of %d visits from %.0f to %.0f, %d runs" % (VISITS, min(milliseconds), max(milliseconds), RUNS)
    return Row(name, statistics.quantiles(milliseconds, n=4)[0], "ms", figures, False, bar)


def main() -> int:
    """Measures and prints; 1 if a bar is missed, or if it cannot be measured in CI."""
    chromium = find_browser(CHROMIUM)
    if chromium is None:
        print("The page is not measured: none of %s is in PATH." % ", ".join(CHROMIUM))
        return 1 if os.environ.get("CI") else 0
    simulator = Process("-c", SIMULATOR, ROOT)
    try:
        with tempfile.TemporaryDirectory() as folder:
            keeping = ("--keep-runs", str(RUNS))
            service = start_middleware(simulator, folder, picture_prompt(), 1, *keeping)
            prompt_id = ask(service, "GET", "/queue")["prompt_id"]
            ask(service, "GET", "/runs/%s?wait=20" % prompt_id)
            service.end()
            fill_state(os.path.join(folder, "workflow_api.runs.sqlite3"), RUNS)
            service = start_middleware(simulator, folder, picture_prompt(), 1, *keeping)
            try:
                return show_rows(bench_page(chromium, service.url))
            finally:
                service.end()
    finally:
        simulator.end()


if __name__ == "__main__":
    sys.exit(main())
