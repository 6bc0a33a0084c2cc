"""Batches: the rows, the manifest and --resume, names, cancelling, and what a person and a script see."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Set, Tuple

import pytest
import requests
from simulated import txt2img
from support import FAST, SCRIPT, Outcome, Terminal, call, node, run, seconds_since, slow_prompt, wait_until

from comfyui_runner.errors import ExitStatus
from comfyui_runner.extras.batches import Tally
from comfyui_runner.simulator.installation import MODELS
from comfyui_runner.simulator.life import Life

Make = Callable[..., Any]

#: A seed and a text, and what shows them.
SEEDED = {
    "1": node("SlowProgress", "Slow", steps=1, seconds=0.0, seed=7, preview=False),
    "2": node("SaveImage", "Save Image", filename_prefix="pic", images=["1", 0]),
    "3": node("TextOut", "Words", text="a fox"),
}


class Batch:
    """A workflow, its rows and where its manifest is, in a folder of its own."""

    def __init__(self, simulator: Any, folder: Any) -> None:
        self.simulator, self.folder = simulator, folder
        self.prompt: Dict[str, Any] = SEEDED
        self.rows_file = folder / "rows.csv"
        self.manifest = folder / "rows.manifest.jsonl"

    def csv(self, *lines: str) -> None:
        self.rows_file.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def json_lines(self, *rows: Any) -> None:
        """Rows; a text stands for itself."""
        texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        self.rows_file.write_text("\n".join(texts) + "\n", encoding="utf-8")

    def __call__(self, *arguments: str, json_mode: bool = True, yes: bool = True, **options: Any) -> Outcome:
        """The program on the rows; without rows ``arguments`` say what to do."""
        path = self.folder / "flow.json"
        path.write_text(json.dumps(self.prompt), encoding="utf-8")
        words = [str(path), "--server", self.simulator.url, *(["--yes"] if yes else [])]
        words += ["--json"] if json_mode else []
        words += ["--batch", str(self.rows_file)] if self.rows_file.exists() else []
        return run(*words, *arguments, **options)

    def lines(self, path: Any = None) -> List[Dict[str, Any]]:
        """The manifest; empty lines are none."""
        text = (path or self.manifest).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines() if line]

    def rows(self, status: str) -> List[int]:
        """The numbers of the rows that the manifest lists as done or as failed, sorted."""
        return sorted(line["row"] for line in self.lines() if line["status"] == status)

    def values(self, name: str) -> List[Any]:
        """What NODE.INPUT was in each prompt that ran to its end, oldest first."""
        node_id, _, key = name.partition(".")
        history = requests.get(self.simulator.url + "/history", timeout=10).json()
        return [entry["prompt"][2][node_id]["inputs"].get(key) for entry in history.values()]

    def posts(self) -> int:
        return int(self.simulator.requests.count(("POST", "/prompt")))


@pytest.fixture
def batch(simulator: Any, tmp_path: Any) -> Batch:
    """A batch on a simulator of its own."""
    return Batch(simulator, tmp_path)


@contextlib.contextmanager
def pressed(condition: Callable[[], Any], number: int = signal.SIGINT) -> Iterator[List[Any]]:
    """Presses Ctrl+C (or sends another signal) as soon as the condition is true; the list has its value then."""
    if os.name == "nt":
        pytest.skip("Windows cannot send a signal to one process")
    seen: List[Any] = []
    over = threading.Event()

    def press() -> None:
        try:
            seen.append(wait_until(lambda: over.is_set() or condition(), what="the moment to press"))
        finally:
            if not over.is_set():
                os.kill(os.getpid(), number)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def meanwhile(condition: Callable[[], Any], action: Callable[[], Any]) -> Iterator[None]:
    """Does something as soon as the condition is true."""

    def work() -> None:
        wait_until(condition, what="the moment to act")
        action()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


# -- rows and the manifest -------------------------------------------------------------------------


def test_each_row_runs_with_its_values_and_is_told_in_the_manifest(batch: Batch) -> None:
    batch.csv("Words.text,1.seed", "one,1", '"two, and more",2', "three,3")
    result = batch()
    assert result.status == ExitStatus.OK
    assert sorted(zip(batch.values("3.text"), batch.values("1.seed"))) == [
        ("one", 1),
        ("three", 3),
        ("two, and more", 2),
    ]
    lines = sorted(batch.lines(), key=lambda line: line["row"])
    assert [line["row"] for line in lines] == [1, 2, 3]
    assert [line["values"] for line in lines][1] == {"Words.text": "two, and more", "1.seed": "2"}
    for line in lines:
        assert (line["status"], line["exit_status"], line["end"]) == ("done", 0, "success")
        assert line["prompt_id"] in batch.simulator.executions
        assert {output["node_id"] for output in line["outputs"]} == {"2", "3"}
        assert line["message"].startswith("Done in") and line["time"] > 1.7e9 and line["seconds"] >= 0
    assert len({line["key"] for line in lines}) == 3
    end = result.event("batch")
    assert (end["done"], end["failed"], end["skipped"], end["exit_status"]) == (3, 0, 0, 0)
    assert end["manifest"] == str(batch.manifest)
    assert result.names()[-1] == "batch"


def test_a_manifest_is_written_as_rows_end(batch: Batch) -> None:
    """The second row ends only after the first one is on the disk."""
    batch.prompt = slow_prompt(steps=1, seconds=0.0)
    batch.csv("1.seconds", "0", "60")
    with pressed(lambda: batch.manifest.exists() and batch.lines()) as seen:
        result = batch("--in-flight", "1")  # rows in flight may start in any order
    assert result.status == ExitStatus.CANCELLED
    assert [line["row"] for line in seen[0]] == [1]


def test_resume_skips_what_is_done_and_repeats_what_failed(batch: Batch) -> None:
    batch.csv("1.steps", "1", "0", "3")
    first = batch()
    assert first.status == ExitStatus.FAILED
    assert batch.rows("done") == [1, 3] and batch.rows("failed") == [2]
    batch.csv("1.steps", "1", "2", "3")
    second = batch("--resume")
    assert second.status == ExitStatus.OK
    assert (second.event("batch")["done"], second.event("batch")["skipped"]) == (1, 2)
    assert [event["row"] for event in second.events if event["event"] == "row"] == [2]
    assert batch.rows("done") == [1, 2, 3]
    assert sorted(batch.values("1.steps")) == [1, 2, 3]


def test_resume_runs_a_changed_row_again(batch: Batch) -> None:
    batch.csv("3.text", "one", "two")
    assert batch().status == ExitStatus.OK
    batch.csv("3.text", "one", "other")
    result = batch("--resume")
    assert result.event("batch")["skipped"] == 1
    assert batch.values("3.text")[-1] == "other" and len(batch.values("3.text")) == 3


def test_resume_repeats_a_row_whose_line_was_cut_off(batch: Batch) -> None:
    batch.csv("3.text", "one", "two")
    assert batch("--in-flight", "1").status == ExitStatus.OK
    text = batch.manifest.read_bytes()
    batch.manifest.write_bytes(text[: text.rindex(b'"status"') + 12])
    result = batch("--resume")
    assert (result.event("batch")["done"], result.event("batch")["skipped"]) == (1, 1)
    good = [line for line in batch.manifest.read_text().splitlines() if line.endswith("}")]
    assert [json.loads(line)["row"] for line in good] == [1, 2]


def test_a_manifest_of_an_earlier_batch_is_not_written_over(batch: Batch) -> None:
    batch.csv("3.text", "one")
    assert batch().status == ExitStatus.OK
    before, posts = batch.manifest.read_bytes(), batch.posts()
    result = batch()
    assert result.status == ExitStatus.USAGE
    assert "--resume" in result.err and "--manifest" in result.err
    assert batch.manifest.read_bytes() == before and batch.posts() == posts
    assert batch("--manifest", str(batch.folder / "new" / "m.jsonl")).status == ExitStatus.OK
    assert (batch.folder / "new" / "m.jsonl").exists()


def test_never_more_than_k_of_ours_are_in_the_queue(batch: Batch, monkeypatch: Any) -> None:
    """Counted by the server whenever it takes one."""
    counts: List[int] = []
    put = Life.put

    def counted(life: Any, job: Any) -> None:
        put(life, job)
        running, pending = life.snapshot()
        counts.append(len(running) + len(pending))

    monkeypatch.setattr(Life, "put", counted)
    batch.csv("1.seconds", "0.5", *["0"] * 7)  # behind the first one the others wait
    for in_flight in (None, 1, 3):
        batch.prompt = slow_prompt(seed=in_flight or 0)  # so that nothing is cached
        counts.clear()
        words = [] if in_flight is None else ["--in-flight", str(in_flight)]
        result = batch(*words, "--manifest", str(batch.folder / ("%s.jsonl" % in_flight)))
        assert result.status == ExitStatus.OK
        assert len(counts) == 8 and max(counts) == (in_flight or 2)


# -- rows that are wrong ---------------------------------------------------------------------------


def test_bad_rows_are_reported_and_do_not_stop_the_rest(batch: Batch) -> None:
    """What is wrong with a row is reported with its number, in the events and in the manifest; nothing of it runs."""
    deep: Any = "x"
    for _ in range(90):  # deeper JSON is not read at all
        deep = [deep]
    bad = [
        ('{"3.text": ', "not JSON"),
        ("[1]", "a list, not an object"),
        ({"9.text": "x"}, 'no node "9"'),
        ({"text": "x"}, "write NODE.INPUT"),
        ({"1.stepz": 3}, "no input"),
        ({"1.steps": "many"}, '"many" is not a whole number'),
        ({"1.steps": 0}, "is too small. Allowed: 1 to"),
        ({"2.images": "x"}, "fed by"),
        ({"3.text": deep}, "is not text"),
        ({"1.steps": "@" + __file__}, "is not a whole number"),
    ]
    batch.json_lines({"3.text": "first"}, *[row for row, _ in bad], {"3.text": "last"})
    result = batch()
    assert result.status == ExitStatus.FAILED
    assert sorted(batch.values("3.text")) == ["first", "last"] and batch.posts() == 2
    assert batch.rows("done") == [1, len(bad) + 2]
    messages = {event["row"]: event["message"] for event in result.events if event["event"] == "row"}
    kept = {line["row"]: line for line in batch.lines()}
    for number, (_, words) in enumerate(bad, 2):
        assert words in messages[number]
        assert kept[number]["message"] == messages[number]
        assert (kept[number]["status"], kept[number]["exit_status"]) == ("failed", ExitStatus.USAGE)
    assert (result.event("batch")["done"], result.event("batch")["failed"]) == (2, len(bad))
    assert batch("--resume").event("batch")["skipped"] == 2
    assert batch.posts() == 2


def test_bad_lines_of_a_csv_file_are_rows_that_failed(batch: Batch) -> None:
    batch.csv("3.text,1.steps", "one,1", "two,2,3", 'th"ree,"3"4', "", "four,4", "five")
    result = batch()
    assert result.status == ExitStatus.FAILED
    assert sorted(batch.values("3.text")) == ["five", "four", "one"]
    assert batch.rows("failed") == [2, 3] and batch.rows("done") == [1, 4, 5]
    messages = {line["row"]: line["message"] for line in batch.lines()}
    assert "3 cells, but the header has 2" in messages[2] and "it is not CSV" in messages[3]


def test_an_empty_cell_is_the_empty_text_or_the_workflows_value(batch: Batch) -> None:
    batch.csv("3.text,1.seed", ",", "x,8")
    assert batch("--in-flight", "1").status == ExitStatus.OK
    assert batch.values("3.text") == ["", "x"] and batch.values("1.seed") == [7, 8]


@pytest.mark.parametrize("json_lines", [False, True])
def test_rows_of_somebody_else_send_no_file_of_this_machine_as_a_text(json_lines: bool, batch: Batch) -> None:
    """A text that begins with @ is that text; two marks stand for one, as everywhere."""
    secret = batch.folder / "secret.txt"
    secret.write_text("the secret", encoding="utf-8")
    texts = [f"@{secret}", "@artist", "@no/such/file", f"@{secret}", "@@home", "@"]
    if json_lines:
        batch.json_lines(*[{"3.text": text} for text in texts])
    else:
        batch.csv("3.text", *texts)
    result = batch("--in-flight", "1")
    assert result.status == ExitStatus.OK
    assert batch.values("3.text") == [*texts[:4], "@home", "@"]
    notice = result.event("notice")["message"]  # once for all rows
    assert notice.startswith("3.text: a text such as @") and "only in the columns of nodes that load files" in notice


def test_a_file_that_the_command_line_names_is_the_text_of_all_rows(batch: Batch) -> None:
    (batch.folder / "text.txt").write_text("from a file\nof two lines", encoding="utf-8")
    batch.csv("1.seed", "5", "6")
    assert batch("--in-flight", "1", "--set", f"3.text=@{batch.folder / 'text.txt'}").status == ExitStatus.OK
    assert batch.values("3.text") == ["from a file\nof two lines"] * 2 and batch.values("1.seed") == [5, 6]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv_file_may_be_one_that_a_spreadsheet_wrote(separator: str, batch: Batch) -> None:
    """With its separator, a byte order mark, and cells of two lines."""
    rows = [["3.text", "1.seed"], ['"a, b; c\nd"', "5"]]
    text = "\ufeff" + "\r\n".join(separator.join(row) for row in rows) + "\r\n"
    batch.rows_file.write_bytes(text.encode())
    assert batch().status == ExitStatus.OK
    assert batch.values("3.text") == ["a, b; c\nd"] and batch.values("1.seed") == [5]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("Wrods.text", 'no node "Wrods"'),
        ("text", "write NODE.INPUT"),
        ("3.text,3.text", "each only once"),
        (",", "must name its columns"),
        ("1.stepz", 'no input "stepz"'),
        ("2.images", "fed by"),
    ],
)
def test_a_header_that_cannot_be_used_runs_nothing(header: str, words: str, batch: Batch) -> None:
    batch.csv(header, "1,1" if "," in header else "1")
    result = batch()
    assert result.status == ExitStatus.USAGE
    assert words in result.err
    assert batch.posts() == 0 and not batch.manifest.exists()


def test_a_folder_in_place_of_rows_or_a_manifest_is_named_as_one(batch: Batch) -> None:
    """Windows says that permission is denied."""
    rows = batch("--batch", str(batch.folder))
    assert rows.status == ExitStatus.USAGE
    assert f"--batch {batch.folder} cannot be read: it is a folder." in rows.err
    for flags in ([], ["--resume"]):
        manifest = batch("--repeat", "2", "--manifest", str(batch.folder), *flags)
        assert manifest.status == ExitStatus.USAGE
        assert f"The manifest {batch.folder} is a folder." in manifest.err
    assert batch.posts() == 0


def test_a_pattern_that_no_shell_expanded_means_the_one_file_of_rows_that_fits(batch: Batch) -> None:
    (batch.folder / "fox_1.csv").write_bytes(b"3.text\na fox\n")
    pattern = str(batch.folder / "fox*.csv")
    assert batch("--batch", pattern).status == ExitStatus.OK
    assert batch.posts() == 1 and (batch.folder / "fox_1.manifest.jsonl").exists()
    (batch.folder / "fox_2.csv").write_bytes(b"3.text\na fox\n")
    several = batch("--batch", pattern)
    assert several.status == ExitStatus.USAGE
    assert f"Several files match {pattern}, and only one can be used." in several.err
    assert batch.posts() == 1


def test_each_runs_every_combination_and_goes_on_where_it_was_cut(batch: Batch) -> None:
    each = ("--each", "3.text=a fox", "--each", "3.text=a cat", "--each", "1.steps=1..3")
    manifest = batch.folder / "flow.manifest.jsonl"
    assert batch(*each).status == ExitStatus.OK
    lines = manifest.read_text(encoding="utf-8").splitlines()
    values = [json.loads(line)["values"] for line in lines]
    assert sorted((value["3.text"], value["1.steps"]) for value in values) == [
        (text, steps) for text in ("a cat", "a fox") for steps in (1, 2, 3)
    ]
    manifest.write_text("\n".join(lines[:4]) + "\n", encoding="utf-8")
    assert batch(*each, "--resume").status == ExitStatus.OK
    assert batch.posts() == 6 + 2


def test_the_question_says_how_many_runs_each_makes(batch: Batch) -> None:
    words = ("--each", "1.steps=1..3", "--each", "3.text=a fox", "--repeat", "2")
    result = batch(*words, json_mode=False, yes=False, answers="n\n")
    assert result.status == ExitStatus.NOT_CONFIRMED
    assert "6" in result.out.partition("? [y/N]")[0].rpartition("Run")[2]
    assert batch.posts() == 0


def test_a_batch_that_saves_leaves_a_sheet_beside_its_manifest(batch: Batch) -> None:
    out = batch.folder / "out"
    batch.csv("3.text", "a fox", "a cat")
    result = batch("-o", str(out))
    assert result.status == ExitStatus.OK
    assert result.event("batch")["sheet"] == str(out / "sheet.html")
    page = (out / "sheet.html").read_text(encoding="utf-8")
    assert "3.text: a fox" in page and "3.text: a cat" in page
    for address in re.findall(r'<img src="([^"]+)"', page):
        assert (out / address).exists()
    assert page.count("<img") == 2


def test_a_batch_that_saves_nothing_leaves_no_sheet(batch: Batch) -> None:
    batch.csv("3.text", "a fox")
    assert batch().event("batch")["sheet"] is None
    assert not (batch.folder / "sheet.html").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_manifest_that_is_no_file_has_no_sheet(batch: Batch) -> None:
    """What is read from /dev/full does not end."""
    batch.csv("3.text", "a fox")
    result = batch("-o", str(batch.folder / "out"), "--manifest", "/dev/full")
    assert result.event("batch")["sheet"] is None


def test_a_sheet_says_what_failed(batch: Batch) -> None:
    out = batch.folder / "out"
    batch.csv("1.steps", "1", "-5")
    assert batch("-o", str(out)).status == ExitStatus.FAILED
    page = (out / "sheet.html").read_text(encoding="utf-8")
    assert page.count("<img") == 1 and "Failed: " in page


def test_a_page_of_somebody_else_is_not_replaced_by_a_sheet(batch: Batch) -> None:
    out = batch.folder / "out"
    out.mkdir()
    (out / "sheet.html").write_text("<p>mine", encoding="utf-8")
    batch.csv("3.text", "a fox")
    result = batch("-o", str(out))
    assert result.status == ExitStatus.OK
    assert "The sheet was not written: " in result.out and "is not one of our sheets" in result.out
    assert result.event("batch")["sheet"] is None and "Sheet: " not in result.event("batch")["message"]
    assert (out / "sheet.html").read_text(encoding="utf-8") == "<p>mine"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_sheet_that_cannot_be_written_in_time_is_not_reported(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe stands for a drive that does not answer."""
    monkeypatch.setattr(importlib.import_module("comfyui_runner.extras.batch_job"), "LAST_SHEET", 0.2)
    out = batch.folder / "out"
    out.mkdir()
    os.mkfifo(str(out / "sheet.html"))
    batch.csv("3.text", "a fox")
    result = batch("-o", str(out))
    assert result.status == ExitStatus.OK
    assert result.event("batch")["sheet"] is None and "Sheet: " not in result.event("batch")["message"]
    assert "could not be written within 0.2 s." in result.out


def test_a_text_file_is_a_prompt_per_line(batch: Batch) -> None:
    batch.prompt = txt2img()
    texts = batch.folder / "prompts.txt"
    texts.write_bytes("\ufeffa fox\r\n\r\na cat, red\r\n".encode())
    result = batch("--batch", str(texts))
    assert result.status == ExitStatus.OK, result.err
    lines = (batch.folder / "prompts.manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = sorted((json.loads(line) for line in lines), key=lambda row: row["row"])  # they end in any order
    assert [row["values"] for row in rows] == [{"positive": "a fox"}, {"positive": "a cat, red"}]


def test_a_batch_that_cannot_be_read_is_reported(batch: Batch) -> None:
    missing = batch("--batch", str(batch.folder / "none.csv"))
    assert missing.status == ExitStatus.USAGE and "none.csv cannot be read" in missing.err
    for data, reason in (
        ("3.text\n狐狸\n".encode("gbk"), "it is in GBK, not in UTF-8."),
        (b"3.text\n\xff\x01\n", "it is not text in UTF-8."),
    ):
        batch.rows_file.write_bytes(data)
        other = batch()
        assert other.status == ExitStatus.USAGE and reason in other.err and "Save it as UTF-8" in other.err
    batch.rows_file.write_bytes(b"")
    empty = batch()
    assert empty.status == ExitStatus.USAGE and "must name its columns" in empty.err
    assert batch.posts() == 0 and not batch.manifest.exists()


def test_empty_lines_before_json_lines_are_no_rows(batch: Batch) -> None:
    batch.json_lines("", "  ", {"3.text": "one"}, "", {"3.text": "two"})
    assert batch().status == ExitStatus.OK
    assert batch.rows("done") == [1, 2] and sorted(batch.values("3.text")) == ["one", "two"]


# -- seeds -----------------------------------------------------------------------------------------


def test_repeat_draws_new_seeds_each_time(batch: Batch) -> None:
    result = batch("--repeat", "4", "--manifest", str(batch.manifest))
    assert result.status == ExitStatus.OK
    seeds = batch.values("1.seed")
    assert len(set(seeds)) == 4 and 7 not in seeds
    assert sorted(line["seeds"]["1.seed"] for line in batch.lines()) == sorted(seeds)
    rows = [event for event in result.events if event["event"] == "row"]
    assert sorted(row["seeds"]["1.seed"] for row in rows) == sorted(seeds)
    assert batch.rows("done") == [1, 2, 3, 4]


def test_repeat_with_a_number_counts_up(batch: Batch) -> None:
    assert batch("--repeat", "3", "--seed", "100", "--in-flight", "1").status == ExitStatus.OK
    assert batch.values("1.seed") == [100, 101, 102]


def test_repeat_works_a_second_time_and_goes_on_numbering(batch: Batch) -> None:
    out = batch.folder / "out"
    flags = ("-o", str(out), "--seed", "100", "--in-flight", "1")
    assert batch("--repeat", "2", *flags).status == ExitStatus.OK
    again = batch("--repeat", "2", *flags, json_mode=False)
    assert again.status == ExitStatus.OK
    assert re.findall("(?m)^[12]/2  seed ([0-9]+)  ", again.out) == ["102", "103"]
    assert sorted(name for name in os.listdir(out) if name.isdigit()) == ["00001", "00002", "00003", "00004"]
    assert "2 runs done in " in again.out and f"\nSaved in {out}\n" in again.out
    assert batch.values("1.seed") == [100, 101, 102, 103]

    lines = (out / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    (out / "manifest.jsonl").write_text("\n".join(line for line in lines if '"row": 4' not in line), encoding="utf-8")
    resumed = batch("--repeat", "2", *flags, "--resume")
    assert (resumed.event("batch")["done"], resumed.event("batch")["skipped"]) == (1, 1)
    assert [(event["row"], event["place"]) for event in resumed.events if event["event"] == "row"] == [(4, 2)]


def test_runs_that_are_not_saved_leave_no_manifest(batch: Batch, monkeypatch: Any) -> None:
    monkeypatch.chdir(batch.folder)
    for _ in range(2):
        result = batch("--repeat", "2")
        assert result.status == ExitStatus.OK and result.event("batch")["manifest"] is None
    assert os.listdir(batch.folder) == ["flow.json"]
    refused = batch("--repeat", "2", "--resume", json_mode=False)
    assert refused.status == ExitStatus.USAGE and "Add -o DIR or --manifest FILE" in refused.err


def test_repeat_keeps_the_seeds_where_it_is_told_to(batch: Batch) -> None:
    result = batch("--repeat", "3", "--seed", "keep")
    assert result.status == ExitStatus.OK
    assert batch.values("1.seed") == [7, 7, 7]
    assert [event["seeds"] for event in result.events if event["event"] == "row"] == [{"1.seed": 7}] * 3
    assert "notice" not in result.names()


def test_a_batch_keeps_the_seeds_unless_it_is_told_to_draw_them(batch: Batch) -> None:
    batch.csv("3.text", "one", "two")
    assert batch().status == ExitStatus.OK
    assert batch.values("1.seed") == [7, 7]
    assert batch("--seed", "random", "--manifest", str(batch.folder / "m")).status == ExitStatus.OK
    drawn = batch.values("1.seed")[2:]
    assert len({7, *drawn}) == 3


def test_each_row_is_repeated_and_its_own_seed_stands(batch: Batch) -> None:
    """A seed in the row is neither drawn nor counted; "random" in a cell draws."""
    batch.csv("3.text,1.seed", "one,5", "two,", "three,random")
    assert batch("--repeat", "2", "--seed", "40", "--in-flight", "1").status == ExitStatus.OK
    assert batch.values("3.text") == ["one", "one", "two", "two", "three", "three"]
    seeds = batch.values("1.seed")
    assert seeds[:4] == [5, 5, 40, 41]
    assert len({40, 41, *seeds[4:]}) == 4
    assert batch.rows("done") == [1, 2, 3, 4, 5, 6]


def test_a_repetition_that_goes_on_makes_only_what_is_missing(batch: Batch) -> None:
    assert batch("--repeat", "2", "--manifest", str(batch.manifest)).status == ExitStatus.OK
    result = batch("--repeat", "5", "--manifest", str(batch.manifest), "--resume")
    assert (result.event("batch")["done"], result.event("batch")["skipped"]) == (3, 2)
    assert len(set(batch.values("1.seed"))) == 5


# -- how rows and batches end ----------------------------------------------------------------------


def test_a_row_that_takes_too_long_is_cancelled_and_the_rest_runs(batch: Batch) -> None:
    batch.prompt = slow_prompt(seconds=0.0)
    batch.csv("1.seconds", "0", "60", "0.01")
    result = batch("--timeout", "0.6", "--in-flight", "1")
    assert result.status == ExitStatus.FAILED
    assert batch.rows("done") == [1, 3]
    (line,) = [line for line in batch.lines() if line["status"] == "failed"]
    assert (line["row"], line["exit_status"], line["end"]) == (2, ExitStatus.TIMEOUT, "timeout")
    assert "Cancelled by --timeout: ComfyUI interrupted our run" in line["message"]
    assert len(batch.values("1.seconds")) == 3


def test_the_time_that_a_row_waits_for_our_own_rows_does_not_count_for_the_timeout(batch: Batch) -> None:
    batch.prompt = slow_prompt(seconds=0.18)
    result = batch("--repeat", "5", "--timeout", "0.8", "--in-flight", "5")
    assert (result.status, result.event("batch")["done"]) == (ExitStatus.OK, 5)
    assert result.event("batch")["seconds"] > 0.8


def test_a_row_that_ends_while_the_timeout_cancels_it_has_its_own_end(batch: Batch) -> None:
    """A node that cannot be interrupted ends by itself: what it made counts, as it does for a single run."""
    batch.simulator.faults.ignore_interrupt = True
    batch.prompt = slow_prompt(seconds=0.8)
    batch.csv("1.seed", "1")
    result = batch("--timeout", "0.3")
    assert result.status == ExitStatus.OK
    (line,) = batch.lines()
    assert (line["status"], line["end"]) == ("done", "success") and line["message"].startswith("Done in")


def test_rows_that_are_refused_or_fail_are_reported_with_what_is_wrong(batch: Batch) -> None:
    batch.prompt = {
        "1": node("LoadImage", "Photo", image="example.png"),
        "2": node("SaveImage", images=["1", 0], filename_prefix="pic"),
        "3": node("SimulatedOutput", "Other", ui="{}"),
    }
    batch.csv("1.image,3.ui", "example.png,{}", "missing.png,{}", "example.png,{", "example.png,[]")
    batch.csv("1.image,3.ui", "example.png,{}", "missing.png,{}", "example.png,no JSON", 'example.png,"{""a"": []}"')
    result = batch("--in-flight", "1")
    assert result.status == ExitStatus.FAILED
    assert batch.rows("done") == [1, 4]
    kept = {line["row"]: line for line in batch.lines()}
    assert [kept[row]["exit_status"] for row in (1, 2, 3, 4)] == [0, ExitStatus.PARTIAL, 7, 0]
    problem = next(event for event in result.events if event["event"] == "problem")
    assert (problem["row"], problem["node_id"], problem["input"]) == (2, "1", "image")
    failure = result.event("failure")
    assert (failure["row"], failure["node_id"], failure["type"]) == (3, "3", "JSONDecodeError")
    assert kept[3]["end"] == "error" and "The run failed" in kept[3]["message"]


def test_a_row_that_is_refused_as_a_whole_keeps_its_problems(batch: Batch) -> None:
    batch.prompt = {
        "1": node("LoadImage", "Photo", image="example.png"),
        "2": node("SaveImage", images=["1", 0], filename_prefix="pic"),
    }
    batch.csv("1.image", "missing.png", "example.png")
    result = batch()
    assert result.status == ExitStatus.FAILED and batch.rows("done") == [2]
    line = next(line for line in batch.lines() if line["row"] == 1)
    assert line["exit_status"] == ExitStatus.REJECTED
    (problem,) = line["problems"]
    assert (problem["node_id"], problem["value"], problem["title"]) == ("1", "missing.png", "Photo")
    assert result.event("problem")["row"] == 1


def test_a_row_that_makes_the_server_stumble_does_not_stop_the_rest(batch: Batch) -> None:
    """HTTP 500 to one prompt is that row's end."""
    batch.simulator.faults.lose_post = ["ok", "500", "ok"]
    batch.csv("3.text", "one", "two", "three")
    result = batch("--in-flight", "1")
    assert result.status == ExitStatus.FAILED
    assert batch.rows("done") == [1, 3] and batch.rows("failed") == [2]
    assert "HTTP 500" in next(line for line in batch.lines() if line["row"] == 2)["message"]


def close_rows(batch: Batch) -> int:
    """Closes the rows file wherever it was left open; returns how often that was."""
    count = 0
    for thing in gc.get_objects():
        if type(thing) is not io.TextIOWrapper:
            continue
        with contextlib.suppress(AttributeError, ValueError):  # it has no name, or its buffer was taken
            if thing.name == str(batch.rows_file) and not thing.closed:
                thing.close()
                count += 1
    return count


def test_a_batch_that_is_refused_leaves_its_rows_file_closed(batch: Batch) -> None:
    batch.csv("3.text", "one", "two")
    batch.simulator.faults.http_status["/prompt"] = 401
    gc.disable()
    try:
        assert batch().status == ExitStatus.NO_SERVER
        left_open = close_rows(batch)
    finally:
        gc.enable()
    assert left_open == 0


def test_a_server_that_refuses_us_in_the_middle_ends_the_batch(batch: Batch) -> None:
    """No row could run: none is reported as failed."""
    batch.csv("3.text", *map(str, range(30)))
    with meanwhile(
        lambda: batch.manifest.exists() and batch.lines(),
        lambda: batch.simulator.faults.http_status.update({"/prompt": 401}),
    ):
        result = batch("--in-flight", "1")
    close_rows(batch)
    assert result.status == ExitStatus.NO_SERVER
    assert "refuses us" in result.event("batch")["message"] and "--resume" in result.event("batch")["message"]
    assert batch.rows("failed") == [] and 1 <= len(batch.rows("done")) < 30


@pytest.mark.long
def test_a_server_that_is_gone_ends_the_batch_and_the_rest_is_left_for_resume(batch: Batch) -> None:
    """After limits.give_up, with status 5; once it is back, --resume does what is left."""
    batch.csv("3.text", *map(str, range(40)))
    with meanwhile(lambda: batch.manifest.exists() and len(batch.lines()) >= 3, batch.simulator.crash):
        began = time.monotonic()
        result = batch(limits=FAST._replace(give_up=1.5))
    assert result.status == ExitStatus.NO_SERVER
    assert 1.5 <= seconds_since(began) < 8
    end = result.event("batch")
    assert batch.simulator.url in end["message"] and "--resume" in end["message"]
    ways_to_notice = ("does not answer any more", "nothing listens there")  # a WebSocket, or an HTTP call
    assert any(words in end["message"] for words in ways_to_notice)
    assert 3 <= end["done"] < 40 and end["done"] + end["failed"] == len(batch.lines()) < 40
    assert all(line["exit_status"] == ExitStatus.LOST for line in batch.lines() if line["status"] == "failed")
    batch.simulator.revive()
    second = batch("--resume")
    assert second.status == ExitStatus.OK
    assert batch.rows("done") == list(range(1, 41))
    assert second.event("batch")["skipped"] == end["done"]


def test_a_server_that_comes_back_in_time_is_waited_for(batch: Batch) -> None:
    """Rows that nobody had submitted yet do not fail because of it."""
    batch.csv("3.text", *map(str, range(12)))

    def away() -> None:
        batch.simulator.crash()
        batch.simulator.revive()

    with meanwhile(lambda: batch.manifest.exists() and len(batch.lines()) >= 2, away):
        result = batch("--retries", "2")
    assert result.status == ExitStatus.OK
    assert batch.rows("done") == list(range(1, 13))


# -- cancelling ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "status", "name"), [(signal.SIGINT, 130, r"Ctrl+C"), (signal.SIGTERM, 143, "SIGTERM")]
)
@pytest.mark.parametrize("version", ["0.33.0", "0.3.64"])
def test_a_press_cancels_our_rows_and_nobody_elses(
    version: str, number: int, status: int, name: str, make_simulator: Make, tmp_path: Any
) -> None:
    """What runs and what waits; another client's prompt, in the middle of them, goes on."""
    batch = Batch(make_simulator(version=version), tmp_path)
    batch.prompt = slow_prompt(steps=50, seconds=20.0)
    batch.csv("1.seed", "1", "2", "3", "4")
    others: List[str] = []

    def both() -> bool:
        queue = requests.get(batch.simulator.url + "/queue", timeout=5).json()
        if batch.posts() == 2 and len(queue["queue_running"]) == 1 and not others:
            body = {"prompt": slow_prompt(seconds=0.1, seed=99), "client_id": "other"}
            others.append(requests.post(batch.simulator.url + "/prompt", json=body, timeout=5).json()["prompt_id"])
        return bool(others)

    with pressed(both, number):
        result = batch()
    assert result.status == status
    assert batch.posts() == 3
    messages = [event["message"] for event in result.events if event["event"] == "notice"]
    assert messages == ["%s: cancelling our prompts and nothing else." % name]
    assert "--resume" in result.event("batch")["message"]
    assert result.event("batch")["exit_status"] == status
    assert [(line["exit_status"], line["end"]) for line in batch.lines()] == [(status, "cancelled")] * 2
    url = "%s/history/%s" % (batch.simulator.url, others[0])
    entry = wait_until(lambda: requests.get(url, timeout=5).json().get(others[0]), what="the other's end")
    assert entry["status"]["status_str"] == "success"
    queue = requests.get(batch.simulator.url + "/queue", timeout=5).json()
    assert queue == {"queue_running": [], "queue_pending": []}
    batch.prompt = slow_prompt(steps=1, seconds=0.0)
    assert batch("--resume").status == ExitStatus.OK
    assert batch.rows("done") == [1, 2, 3, 4]


def test_a_press_while_a_rows_file_is_uploaded_submits_nothing(batch: Batch) -> None:
    (batch.folder / "cat.png").write_bytes(b"\xff\xd8\xff a picture, for the simulator")
    batch.prompt = {
        "1": node("LoadImage", "Photo", image="example.png"),
        "2": node("SaveImage", images=["1", 0], filename_prefix="pic"),
    }
    batch.csv("1.image", "@" + str(batch.folder / "cat.png"), "example.png")
    batch.simulator.faults.http_hang = {"/upload": 0.8}
    with pressed(lambda: ("POST", "/upload/image") in batch.simulator.requests):
        result = batch("--in-flight", "1")
    assert result.status == ExitStatus.CANCELLED
    assert batch.posts() == 0 and not batch.lines()


# -- rows from standard input ----------------------------------------------------------------------


@contextlib.contextmanager
def process(batch: Batch, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """The program as a process of its own, at whose standard input somebody types rows."""
    path = batch.folder / "flow.json"
    path.write_text(json.dumps(batch.prompt), encoding="utf-8")
    words = [str(path), "--server", batch.simulator.url, "--yes", "--json", "--batch", "-", *arguments]
    started = subprocess.Popen(
        [sys.executable, SCRIPT, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={name: value for name, value in os.environ.items() if name != "PYTHONASYNCIODEBUG"},
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_rows_that_come_slowly_start_when_they_come(kind: str, batch: Batch) -> None:
    """Each row is typed only after the one before has ended, and is in the manifest."""
    texts = ["one", "two", "three"]
    manifest = batch.folder / "flow.manifest.jsonl"
    with process(batch) as typing:
        assert typing.stdin is not None
        typing.stdin.write("3.text\n" if kind == "csv" else "")
        for count, text in enumerate(texts, 1):
            typing.stdin.write((text if kind == "csv" else json.dumps({"3.text": text})) + "\n")
            typing.stdin.flush()

            def is_done(count: int = count) -> bool:
                return bool(manifest.exists()) and len(batch.lines(manifest)) == count

            wait_until(
                is_done,
                seconds=60.0,  # a busy machine starts the program slowly
                what="the end of row %d" % count,
            )
        out, err = typing.communicate(timeout=60)
    assert (typing.returncode, err) == (ExitStatus.OK, "")
    assert batch.values("3.text") == texts
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["total"] for event in events if event["event"] == "row"] == [None] * 3
    assert events[-1]["done"] == 3
    assert [line["row"] for line in batch.lines(manifest)] == [1, 2, 3]


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send SIGINT to one process")
def test_a_press_while_no_row_comes_leaves_at_once(batch: Batch) -> None:
    """Standard input that says nothing more holds nothing up."""
    with process(batch) as typing:
        assert typing.stdin is not None
        typing.stdin.write("3.text\none\n")
        typing.stdin.flush()
        manifest = batch.folder / "flow.manifest.jsonl"
        wait_until(lambda: manifest.exists() and batch.lines(manifest), seconds=60.0, what="the first row's end")
        typing.send_signal(signal.SIGINT)
        assert typing.wait(5) == ExitStatus.CANCELLED
        assert typing.stdout is not None
        end = json.loads(typing.stdout.read().splitlines()[-1])
    assert (end["event"], end["done"], end["failed"]) == ("batch", 1, 0)
    assert batch.posts() == 1


def main(batch: Batch, stdin: Any, *arguments: str) -> Any:
    """The program on a standard input; its status, output and errors."""
    path = batch.folder / "flow.json"
    path.write_text(json.dumps(batch.prompt), encoding="utf-8")
    out, err = io.StringIO(), io.StringIO()
    words = [str(path), "--server", batch.simulator.url, "--yes", "--json", *arguments]
    return call(words, stdin, out, err), out.getvalue(), err.getvalue()


@pytest.mark.parametrize("text", ["", "Wrods.text\nx\n", "1.steps,1.steps\n1,2\n"])
def test_standard_input_with_a_header_that_cannot_be_used_runs_nothing(text: str, batch: Batch) -> None:
    status, _, err = main(batch, io.StringIO(text), "--batch", "-")
    assert status == ExitStatus.USAGE and err
    assert batch.posts() == 0
    status, _, _ = main(batch, io.StringIO("3.text\none\n"), "--batch", "-")  # no manifest is in its way
    assert status == ExitStatus.OK


def test_the_question_comes_before_the_rows(batch: Batch) -> None:
    """The answer and the rows come from one input."""
    result = batch("--batch", "-", yes=False, answers="y\n3.text\none\ntwo\n")
    assert result.status == ExitStatus.OK
    assert "Run the rows as they arrive? [y/N]" in result.err
    assert sorted(batch.values("3.text")) == ["one", "two"]


# -- the question ----------------------------------------------------------------------------------


def test_the_question_tells_how_many_rows_there_are_and_no_runs_nothing(batch: Batch) -> None:
    batch.csv("3.text", "one", "two", "three")
    result = batch(yes=False, answers="n\n", json_mode=False)
    assert result.status == ExitStatus.NOT_CONFIRMED
    assert "Run 3 rows? [y/N]" in result.out
    assert batch(yes=False).status == ExitStatus.NOT_CONFIRMED
    assert batch.posts() == 0 and not batch.manifest.exists()


def test_the_question_of_a_batch_that_goes_on_is_about_what_is_not_done(batch: Batch) -> None:
    batch.csv("3.text", "one", "two")
    assert batch().status == ExitStatus.OK
    batch.csv("3.text", "one", "two", "three")
    result = batch("--resume", yes=False, answers="n\n", json_mode=False)
    assert "Run the remaining 1 of 3 rows? [y/N]" in result.out
    batch.csv("3.text", "one", "two")
    assert batch("--resume", yes=False, answers="n\n").status == ExitStatus.OK  # nothing is left to ask about


@pytest.mark.parametrize("flags", [("--repeat",), ("--each", "3.text=@texts.txt", "--repeat")])
def test_the_question_of_runs_that_go_on_is_about_what_is_not_done(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, flags: Tuple[str, ...]
) -> None:
    monkeypatch.chdir(batch.folder)
    (batch.folder / "texts.txt").write_text("one\n", encoding="utf-8")
    flags = (*flags, "3", "--manifest", str(batch.manifest))
    assert batch(*flags).status == ExitStatus.OK
    # Nothing is left to ask about.
    assert batch(*flags, "--resume", yes=False, answers="n\n").status == ExitStatus.OK
    lines = batch.manifest.read_text(encoding="utf-8").splitlines(keepends=True)
    batch.manifest.write_text("".join(line for line in lines if '"row": 2' not in line), encoding="utf-8")
    result = batch(*flags, "--resume", yes=False, answers="n\n", json_mode=False)
    assert "Run the remaining 1 of 3 runs? [y/N]" in result.out


# -- files to upload -------------------------------------------------------------------------------

LOADER = {
    "1": node("LoadImage", "Photo", image="example.png"),
    "2": node("SaveImage", images=["1", 0], filename_prefix="pic"),
    "3": node("TextOut", "Words", text=""),
}


def picture(folder: Any, name: str, size: int = 40) -> str:
    path = folder / name
    path.write_bytes(b"\xff\xd8\xff" + name.encode() + b" for the simulator".ljust(size, b"."))
    return str(path)


def test_a_row_may_name_a_model_otherwise_than_the_server_does(batch: Batch, monkeypatch: Any) -> None:
    monkeypatch.setitem(MODELS, "checkpoints", ["a/one.safetensors", "two.safetensors"])
    batch.prompt = txt2img(steps=1)
    batch.prompt["4"]["inputs"]["ckpt_name"] = "two.safetensors"
    batch.csv("4.ckpt_name", "a\\one.safetensors", "one.safetensors", "two.safetensors")
    result = batch("--in-flight", "1")
    assert result.status == ExitStatus.OK
    assert batch.values("4.ckpt_name") == ["a/one.safetensors", "a/one.safetensors", "two.safetensors"]
    notices = [event["message"] for event in result.events if event["event"] == "notice"]
    assert [("a/one.safetensors is used for a\\one.safetensors" in notice) for notice in notices] == [True]


def test_a_column_uploads_each_rows_file(batch: Batch) -> None:
    batch.prompt = LOADER
    paths = [picture(batch.folder, name) for name in ("cat.png", "dog.png")]
    batch.csv("Photo.image", *["@" + path for path in paths], "example.png", "@" + str(batch.folder / "none.png"))
    result = batch("--in-flight", "1")
    assert result.status == ExitStatus.FAILED
    assert batch.rows("done") == [1, 2, 3]
    assert batch.values("1.image") == ["cat.png", "dog.png", "example.png"]
    for path in paths:
        with open(path, "rb") as mine, open(batch.simulator.annotated(os.path.basename(path)), "rb") as theirs:
            assert mine.read() == theirs.read()
    assert "none.png to upload" in next(line for line in batch.lines() if line["row"] == 4)["message"]


def test_a_file_that_cannot_be_uploaded_is_its_rows_own_end(make_simulator: Make, tmp_path: Any) -> None:
    """Too large for the server, with a name that no system has, or not a file that ends."""
    batch = Batch(make_simulator(max_upload_size=2000), tmp_path)
    batch.prompt = LOADER
    large, small = picture(tmp_path, "large.png", 5000), picture(tmp_path, "small.png")
    names = [large, "a\0b.png", str(tmp_path), small]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        names.append(str(tmp_path / "pipe.png"))
    batch.json_lines(*[{"1.image": "@" + name} for name in names])
    result = batch("--in-flight", "1")
    assert result.status == ExitStatus.FAILED
    assert batch.rows("done") == [4] and len(batch.rows("failed")) == len(names) - 1
    messages = {line["row"]: line["message"] for line in batch.lines()}
    assert "HTTP 413" in messages[1] and "null" in messages[2] and "it is a folder" in messages[3]
    assert len(names) == 4 or "it is a pipe, not a file" in messages[5]


def test_the_workflows_own_file_is_uploaded_once_and_a_rows_file_goes_before_it(batch: Batch) -> None:
    batch.prompt = LOADER
    batch.csv("3.text,1.image", "one,", "two,", "three,@" + picture(batch.folder, "dog.png"), "four,")
    batch.simulator.faults.http_hang = {"/upload": 0.2}  # the second row would begin it as well
    result = batch("--image", picture(batch.folder, "cat.png"))
    assert result.status == ExitStatus.OK
    assert dict(zip(batch.values("3.text"), batch.values("1.image"))) == {
        "one": "cat.png",
        "two": "cat.png",
        "three": "dog.png",
        "four": "cat.png",
    }
    assert batch.simulator.requests.count(("POST", "/upload/image")) == 2
    assert result.event("uploaded")["value"] == "cat.png"


def test_a_file_for_all_rows_that_cannot_be_uploaded_ends_the_batch(make_simulator: Make, tmp_path: Any) -> None:
    """It is asked for once, and no row is reported as failed."""
    batch = Batch(make_simulator(max_upload_size=2000), tmp_path)
    batch.prompt = LOADER
    batch.csv("3.text", "one", "two", "three")
    result = batch("--image", picture(tmp_path, "large.png", 5000), "--in-flight", "1")
    assert result.status == ExitStatus.NO_SERVER
    assert "HTTP 413" in result.event("batch")["message"]
    assert batch.simulator.requests.count(("POST", "/upload/image")) == 1
    assert batch.lines() == []


# -- folders and names -----------------------------------------------------------------------------


def files(folder: Any) -> List[str]:
    """All files below a folder, without the manifest and the sheet."""
    found = [os.path.relpath(os.path.join(at, name), folder) for at, _, names in os.walk(folder) for name in names]
    made = (name for name in found if os.path.basename(name) != "manifest.jsonl" and not name.endswith("sheet.html"))
    return sorted(name.replace(os.sep, "/") for name in made)


def test_each_row_has_a_folder_and_the_manifest_lies_beside_them(batch: Batch) -> None:
    batch.csv("3.text,1.seed", "one,1", "two,2")
    out = batch.folder / "out"
    result = batch("-o", str(out))
    assert result.status == ExitStatus.OK
    assert [os.path.dirname(name) for name in files(out)] == ["00001", "00001", "00002", "00002"]
    assert (out / "00002" / "Words.txt").read_text() == "two"
    for line in batch.lines(out / "manifest.jsonl"):
        for output in line["outputs"]:
            assert os.path.exists(output["path"])
            assert os.path.basename(os.path.dirname(output["path"])) == "%05d" % line["row"]
    assert not batch.manifest.exists()
    assert batch("-o", str(out)).status == ExitStatus.USAGE
    assert batch("-o", str(out), "--resume").event("batch")["skipped"] == 2


def test_folders_are_filled_in_from_the_row_and_the_workflow(batch: Batch) -> None:
    batch.csv("Words.text", "one", "two")
    result = batch("-o", str(batch.folder / "{Words.text}" / "{1.seed}-{row}"))
    assert result.status == ExitStatus.OK
    assert [os.path.dirname(name) for name in files(batch.folder) if name.endswith(".png")] == [
        "one/7-00001",
        "two/7-00002",
    ]
    assert batch.manifest.exists()


def test_names_are_filled_in_and_drawn_seeds_are_reported_in_them(batch: Batch) -> None:
    batch.prompt = {key: SEEDED[key] for key in ("1", "2")}
    out = batch.folder / "out"
    assert batch("--repeat", "2", "-o", str(out), "--name", "{row}-{Slow.seed}-{name}").status == ExitStatus.OK
    seeds = {line["row"]: line["seeds"]["1.seed"] for line in batch.lines(out / "manifest.jsonl")}
    assert [name[: name.index("-pic_")] for name in files(out)] == ["00001-%d" % seeds[1], "00002-%d" % seeds[2]]


def test_names_that_are_taken_get_a_number_unless_they_are_to_be_replaced(batch: Batch) -> None:
    batch.prompt = {key: SEEDED[key] for key in ("1", "2")}
    batch.csv("1.seed", "1", "2", "3")
    out = batch.folder / "out"
    assert batch("-o", str(out), "--name", "same").status == ExitStatus.OK
    assert files(out) == ["same (1).png", "same (2).png", "same.png"]
    paths = [output["path"] for line in batch.lines(out / "manifest.jsonl") for output in line["outputs"]]
    assert len(set(paths)) == 3
    other = batch.folder / "other"
    assert batch("-o", str(other), "--name", "same", "--overwrite").status == ExitStatus.OK
    assert files(other) == ["same.png"]


def test_names_that_the_system_takes_for_one_do_not_replace_each_other(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As "A.png" and "a.png" on Windows and macOS: played by a link, which is the same file."""
    batch.prompt = {key: SEEDED[key] for key in ("1", "2")}
    batch.csv("1.seed,2.filename_prefix", "1,A", "2,a")
    out = batch.folder / "out"
    replace = os.replace

    def replace_under_both_names(old: str, new: str) -> None:
        replace(old, new)
        if os.path.basename(new) == "A.png":
            os.link(new, out / "a.png")

    monkeypatch.setattr(os, "replace", replace_under_both_names)
    words = ["-o", str(out), "--name", "{2.filename_prefix}", "--overwrite", "--in-flight", "1"]
    assert batch(*words).status == ExitStatus.OK
    assert files(out) == ["A.png", "a (1).png", "a.png"]
    assert (out / "A.png").samefile(out / "a.png")


HOSTILE = [
    "../../escaped",
    "..\\..\\escaped",
    "/etc/escaped",
    "C:\\escaped",
    "..",
    ".",
    "",
    "~/escaped",
    "a\0b",
    "CON",
    "x" * 500,
    "\u202egnp.exe",
    "\x1b[2Jescaped",
    "{row}",
    "{3.text}",
    "語" * 100,
    "\ud800",
    "$(touch escaped)",
    "a\nb",
]


@pytest.mark.parametrize(
    "pattern",
    [["-o", "out/{3.text}"], pytest.param(["-o", "out", "--name", "{3.text}"], marks=pytest.mark.long)],
)
def test_hostile_cells_never_lead_out_of_the_folder(pattern: List[str], batch: Batch, monkeypatch: Any) -> None:
    monkeypatch.chdir(batch.folder)
    batch.json_lines(*[{"3.text": text} for text in HOSTILE])
    before = set(files(batch.folder)) | {"flow.json", "rows.manifest.jsonl"}
    result = batch(*pattern)
    assert result.status == ExitStatus.OK, result.event("batch")
    made = set(files(batch.folder)) - before
    assert len(made) == 2 * len(HOSTILE) - 1  # an empty text is not an output
    root = os.path.realpath("out")
    for name in made:
        assert os.path.realpath(name).startswith(root + os.sep), name
        parts = name.split("/")[1:]
        assert len(parts) == (2 if len(pattern) == 2 else 1)
        for part in parts:
            assert len(part.encode()) < 100 and not set(part) & set('<>:"|?*\\\0\x1b\n\u202e')
            assert part.partition(".")[0].upper() != "CON" and part not in (".", "..")


def test_a_pattern_that_names_nothing_is_refused_before_anything_runs(batch: Batch) -> None:
    batch.csv("3.text", "one", "two")
    for pattern in (["-o", "out/{rwo}"], ["-o", "out", "--name", "{3.txet}"]):
        result = batch(*pattern)
        assert result.status == ExitStatus.USAGE
        assert "is not one of {row}" in result.err or "is not one of {name}, {row}" in result.err
    assert batch.posts() == 0 and not batch.manifest.exists()


def test_a_file_that_cannot_be_saved_is_its_rows_failure(batch: Batch) -> None:
    """It is made again by --resume."""
    batch.csv("3.text", "one", "two")
    out = batch.folder / "out"
    out.mkdir()
    (out / "00001").write_text("in the way")
    result = batch("-o", str(out), "--in-flight", "1")
    assert result.status == ExitStatus.FAILED
    lines = {line["row"]: line for line in batch.lines(out / "manifest.jsonl")}
    assert (lines[1]["status"], lines[1]["exit_status"]) == ("failed", ExitStatus.NOT_SAVED)
    assert lines[1]["message"].split("\n")[-1] == "Not saved: Words, pic_00001_.png."
    assert lines[2]["status"] == "done"
    assert {event["row"] for event in result.events if event["event"] == "not_saved"} == {1}
    (out / "00001").unlink()
    assert batch("-o", str(out), "--resume").status == ExitStatus.OK
    assert (out / "00001" / "Words.txt").read_text() == "one"


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_manifest_that_cannot_be_written_runs_nothing(more: List[str], batch: Batch) -> None:
    batch.csv("3.text", "one")
    (batch.folder / "file").write_text("no folder")
    for path in (batch.folder, batch.folder / "file" / "m.jsonl"):
        result = batch("--manifest", str(path), *more)
        assert result.status == ExitStatus.USAGE, result.err
        assert str(path) in result.err
    assert batch.posts() == 0


# -- retries ---------------------------------------------------------------------------------------

#: A prompt that is gone is reported as lost soon.
HASTY = FAST._replace(settle=0.4, poll=0.2)


def test_a_row_that_its_server_lost_is_submitted_again(batch: Batch) -> None:
    batch.prompt = slow_prompt(seconds=0.0)
    batch.csv("1.seconds", "0", "1.0", "0.01")
    out = io.StringIO()

    def second_runs() -> bool:
        is_submitted = out.getvalue().count('"event": "submitted"') == 2  # else its POST would be sent again
        return is_submitted and len(batch.simulator.executions) == 2

    with meanwhile(second_runs, batch.simulator.restart):
        result = batch("--in-flight", "1", "--retries", "1", limits=HASTY, out=out)
    assert result.status == ExitStatus.OK
    assert batch.rows("done") == [1, 2, 3] and len(batch.lines()) == 3
    assert len(batch.simulator.executions) == 4
    (notice,) = [event for event in result.events if event["event"] == "notice"]
    assert notice["row"] == 2 and "Row 2 is lost" in notice["message"]


def test_a_row_that_its_server_lost_fails_without_retries(batch: Batch) -> None:
    batch.prompt = slow_prompt(seconds=0.0)
    batch.csv("1.seconds", "0", "1.0", "0.01")
    with meanwhile(lambda: len(batch.simulator.executions) == 2, batch.simulator.restart):
        result = batch("--in-flight", "1", limits=HASTY)
    assert result.status == ExitStatus.FAILED
    assert batch.rows("done") == [1, 3] and batch.rows("failed") == [2]
    line = next(line for line in batch.lines() if line["row"] == 2)
    assert (line["exit_status"], line["end"]) == (ExitStatus.LOST, "lost")


@pytest.mark.parametrize(("retries", "status", "runs"), [(1, ExitStatus.OK, 2), (0, ExitStatus.LOST, 1)])
def test_a_single_run_that_its_server_lost_is_submitted_again(
    retries: int, status: int, runs: int, batch: Batch
) -> None:
    batch.prompt = slow_prompt(seconds=0.8)
    with meanwhile(lambda: batch.simulator.executions, batch.simulator.restart):
        result = batch("--retries", str(retries), limits=HASTY)
    assert result.status == status
    assert len(batch.simulator.executions) == runs
    assert [event["status"] for event in result.events if event["event"] == "end"] == ["lost", "success"][:runs]
    assert len({event["prompt_id"] for event in result.events if event["event"] == "end"}) == runs


@pytest.mark.parametrize(("steps", "status"), [(1, ExitStatus.OK), (0, ExitStatus.REJECTED)])
def test_a_run_that_was_not_lost_is_submitted_once(steps: int, status: int, batch: Batch) -> None:
    batch.prompt = slow_prompt(steps=steps, seconds=0.0)
    assert batch("--retries", "2").status == status
    assert batch.posts() == 1


def test_retries_that_are_used_up_leave_a_single_run_lost(batch: Batch) -> None:
    batch.prompt = slow_prompt(seconds=20.0)
    restarts: List[int] = []

    def restart() -> None:
        for count in (1, 2):

            def has_started(count: int = count) -> bool:
                return len(batch.simulator.executions) == count

            wait_until(has_started, what="run %d" % count)
            batch.simulator.restart()
            restarts.append(count)

    with meanwhile(lambda: True, restart):
        result = batch("--retries", "1", limits=HASTY)
    assert result.status == ExitStatus.LOST and restarts == [1, 2]
    assert len(batch.simulator.executions) == 2
    assert result.out.count("submitting it again (--retries)") == 1


# -- what is reported -------------------------------------------------------------------------------


def test_the_events_of_a_run_name_its_row(batch: Batch) -> None:
    batch.csv("3.text", "one", "two", "three")
    result = batch("-o", str(batch.folder / "out"))
    by_run: Dict[str, Set[Any]] = {}
    for event in result.events:
        if event["event"] in ("submitted", "started", "output", "saved", "end", "row"):
            by_run.setdefault(event["prompt_id"], set()).add((event["row"], event["event"]))
    assert len(by_run) == 3
    for row, prompt_id in enumerate(sorted(by_run, key=lambda key: min(by_run[key])), 1):
        assert {number for number, _ in by_run[prompt_id]} == {row}
        assert {name for _, name in by_run[prompt_id]} >= {"submitted", "started", "output", "saved", "end", "row"}
    counts = [(event["done"], event["total"], event["status"]) for event in result.events if event["event"] == "row"]
    assert counts == [(1, 3, "done"), (2, 3, "done"), (3, 3, "done")]


def test_the_counts_of_a_batch_that_goes_on_include_what_was_done_before(batch: Batch) -> None:
    batch.csv("3.text,1.steps", "one,1", "two,1", "three,0", "four,1")
    batch("--in-flight", "1")
    batch.csv("3.text,1.steps", "one,1", "two,1", "three,1", "four,1", "five,1")
    result = batch("--resume", "--in-flight", "1")
    assert [(event["row"], event["done"], event["total"]) for event in result.events if event["event"] == "row"] == [
        (3, 3, 5),
        (5, 5, 5),
    ]
    assert "2 rows done in" in result.event("batch")["message"]
    assert ", 3 done before" in result.event("batch")["message"]


def test_quiet_prints_what_was_made_and_tells_what_failed_as_errors(batch: Batch) -> None:
    out = batch.folder / "out"
    batch.csv("3.text,1.steps", "one,1", "two,0", "three,1")
    result = batch("-o", str(out), "--quiet", "--in-flight", "1", json_mode=False)
    assert result.status == ExitStatus.FAILED
    paths = result.out.splitlines()
    assert sorted(os.path.relpath(path, os.path.realpath(out)).replace(os.sep, "/") for path in paths) == files(out)
    assert len(paths) == 4
    assert "2/3  two, 0  failed: " in result.err and "is too small. Allowed: 1 to" in result.err
    assert "1 failed" in result.err and "--resume" in result.err


def test_quiet_tells_each_failure_once_and_with_its_row(batch: Batch) -> None:
    batch.prompt = {"1": node("SimulatedOutput", "Other", ui="{}")}
    batch.csv("1.ui", "{}", "no JSON")
    result = batch("--quiet", json_mode=False)
    assert result.out == ""
    assert result.err.count("The run failed") == 1
    assert "2/2  no JSON  failed: The run failed" in result.err
    assert '[row 2] "Other" (SimulatedOutput, node 1) raised JSONDecodeError' in result.err


def test_plain_lines_tell_how_rows_end_and_how_far_it_is(batch: Batch) -> None:
    batch.prompt = {"1": node("SimulatedOutput", "Other", ui="{}"), "2": node("TextOut", text="a")}
    batch.csv("1.ui,2.text", "{},a", "no JSON,b", "{},c")
    result = batch("--in-flight", "1", json_mode=False)
    assert result.status == ExitStatus.FAILED
    lines = result.out.splitlines()
    assert [line.partition(".")[0] for line in lines if re.match("[0-9]/3  ", line)] == [
        "1/3  {}, a  0",
        "2/3  no JSON, b  failed: The run failed after 0",
        "3/3  {}, c  0",
    ]
    assert any(line.startswith('[row 2] "Other" (SimulatedOutput, node 1) raised JSONDecodeError') for line in lines)
    assert "2 rows done in" in result.out and "1 failed" in result.out
    assert str(batch.manifest) in result.out
    assert "Submitted" not in result.out and "Running" not in result.out


def test_the_live_screen_shows_one_bar_for_all_and_one_for_each_row(batch: Batch, monkeypatch: Any) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "110")
    batch.prompt = slow_prompt(steps=4)
    batch.csv("1.seconds", "0.3", "0.31", "0.32", "none")
    result = batch(json_mode=False, out=Terminal())
    assert result.status == ExitStatus.FAILED
    assert re.search(r"Overall .*0/4 rows", result.out)
    assert re.search(r"Overall .*[123]/4 rows.*\d/(s|min), [\d.:]+( s)? left", result.out)
    assert re.search(r"Row \d .*/4 steps", result.out) and re.search(r"Row \d .*waiting", result.out)
    assert re.search(r'4/4  none  failed: .*"none" is not a number', result.out)
    assert result.out.rfind("\x1b[?25h") > result.out.rfind("\x1b[?25l") >= 0  # the cursor is back
    assert "3 rows done in" in result.out[result.out.rfind("\x1b[?25h") :]


def test_the_live_screen_comes_again_for_a_run_that_is_repeated(batch: Batch, monkeypatch: Any) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm-256color")
    batch.prompt = slow_prompt(steps=4, seconds=0.6)
    with meanwhile(lambda: batch.simulator.executions, batch.simulator.restart):
        result = batch("--retries", "1", json_mode=False, limits=HASTY, out=Terminal())
    assert result.status == ExitStatus.OK
    assert result.out.count("\x1b[?25l") == 2 == result.out.count("\x1b[?25h")
    again = result.out[result.out.index("submitting it again") :]
    assert re.search(r"Slow .*\d/4", again) and "Done in" in again


def test_the_tally_in_words() -> None:
    """The pace counts what was done now; nothing is divided by nothing."""
    tally = Tally(40)
    assert tally.in_words() == "0/40 rows"
    tally = tally._replace(done=9, failed=1, skipped=10, seconds=200.0)
    assert tally.in_words() == "20/40 rows, 1 failed, 3.0/min, 6:40 left"
    assert tally._replace(seconds=4.0).in_words() == "20/40 rows, 1 failed, 2.5/s, 8.0 s left"
    assert tally._replace(seconds=10.0).in_words() == "20/40 rows, 1 failed, 1.0/s, 20.0 s left"
    assert tally._replace(total=20).in_words() == "20/20 rows, 1 failed, 3.0/min"
    assert Tally(None, done=1, seconds=2.0).in_words() == "1 row, 30.0/min"
    assert Tally(0).in_words() == "0/0 rows"


# -- the command line ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--repeat", "0"], "from 1 to"),
        (["--repeat", "-1"], "--repeat"),
        (["--repeat", "2", "--in-flight", "0"], "from 1 to"),
        (["--repeat", "2", "--in-flight", "many"], "--in-flight"),
        (["--retries", "x"], "--retries"),
        (["--repeat", "2", "--check"], "cannot be combined"),
        (["--repeat", "2", "--mode", "continuous"], "cannot be combined"),
        (["--repeat", "2", "--save-run", "run.json"], "A batch writes a manifest"),
    ],
)
def test_flags_that_cannot_be_followed_are_reported(arguments: List[str], words: str, batch: Batch) -> None:
    result = batch(*arguments)
    assert result.status == ExitStatus.USAGE
    assert words in result.err and batch.simulator.requests == []


def test_a_batch_without_rows_is_done(batch: Batch) -> None:
    batch.csv("3.text")
    result = batch()
    assert result.status == ExitStatus.OK
    assert result.event("batch")["message"].startswith("0 rows done")


def test_the_workflow_and_the_rows_cannot_both_be_standard_input(batch: Batch) -> None:
    """There is only one."""
    result = run("-", "--server", batch.simulator.url, "--yes", "--batch", "-")
    assert result.status == ExitStatus.USAGE
    assert "standard input" in result.err.lower()


def test_a_batch_that_can_be_read_once_runs(batch: Batch) -> None:
    """Such as a pipe with a name, or <(command) of a shell."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("there are no such pipes")
    pipe = str(batch.folder / "pipe")
    os.mkfifo(pipe)

    def write() -> None:
        with open(pipe, "w", encoding="utf-8") as file:
            file.write("3.text\none\ntwo\n")

    thread = threading.Thread(target=write)
    thread.start()
    result = batch("--batch", pipe)
    thread.join()
    assert result.status == ExitStatus.OK
    assert sorted(batch.values("3.text")) == ["one", "two"]


def test_pictures_that_come_over_the_socket_alone_are_in_the_manifest(batch: Batch) -> None:
    batch.prompt = {
        "1": node("EmptyImage", width=16, height=16, batch_size=2, color=1),
        "2": node("SaveImageWebsocket", "Send", images=["1", 0]),
    }
    batch.json_lines({"1.color": 7})
    assert batch().status == ExitStatus.OK
    (line,) = batch.lines()
    assert [(output["filename"], output["source"], output["url"]) for output in line["outputs"]] == [
        ("Send_00001.png", "websocket", None),
        ("Send_00002.png", "websocket", None),
    ]
