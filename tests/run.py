"""Runs the tests in a virtual environment of their own:  python tests/run.py

    python tests/run.py            the fast set (about two minutes)
    python tests/run.py --lowest   the fast set with the lowest versions that requirements.txt allows
    python tests/run.py --long     the long set: faults, signals, and what else is slow
    python tests/run.py --coarse-clock  the fast set with a clock that ticks every 15.6 ms, as on Windows
    python tests/run.py --onefile  builds the one file, and tests it: command line, signals, continuous mode
    python tests/run.py --lint     format, lint, layers, types, Python 3.8, coverage of the pure modules, the page
    python tests/run.py --bench    the benchmarks
    python tests/run.py --once     no second try for what failed (below); also with --lowest, --long and the like
    python tests/run.py -- -k name what follows -- goes to pytest

Many tests start programs and measure how long they take, and a busy machine can make one late. So a few tests that
failed are run a second time, alone: what passes then is named at the end, and does not fail the set.

Needs Python 3.8 or later with venv and pip (--lint: 3.10). The environments are kept in the project's
folder, as .venv-tests-3.11 and so on, and are renewed when the requirements change. For the page, --lint and
--long use Node.js 18.19 or later with npm; its packages are in tests/node_modules.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from typing import Dict, List

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
REQUIREMENTS = os.path.join(ROOT, "requirements.txt")
TEST_REQUIREMENTS = os.path.join(ROOT, "tests", "requirements.txt")
MORE_REQUIREMENTS = os.path.join(ROOT, "tests", "requirements_more.txt")
NODE_FOLDER = os.path.join(ROOT, "tests")
NODE_PACKAGES = os.path.join(NODE_FOLDER, "node_modules")
SCRIPTS = ["comfyui_workflow_runner.py", "comfyui_runner"]

#: The tests of the files *_long.py are all long: the fast set does not read them.
NOT_LONG = ["-m", "not long", "--ignore-glob=*_long.py"]
#: The fast set mostly waits, so six files run at a time; the long set measures times and must be alone.
FAST_SET = [*NOT_LONG, "-n", "6", "--dist", "loadfile"]
LONG_SET = ["-m", "long"]

#: More failures than these are not the machine's fault: no second try.
MOST_SECOND_TRIES = 5

#: What the one-file build must pass as well.
ONE_FILE_TESTS = ["cli", "running", "batch", "service_*", "values_cli", "signals_long"]


def lowest(requirements: str) -> List[str]:
    """``name==version`` for each ``name>=version`` of a requirements file."""
    return ["%s==%s" % pair for pair in re.findall(r"(?m)^([\w-]+)>=([\d.]+)", requirements)]


def make_environment(path: str) -> None:
    """Makes a virtual environment with pip. Exits in words where this Python cannot.

    Except on Windows, its Python is a link: a copy of Homebrew's, Xcode's or uv's does not find its library.
    """
    try:
        # Debian packs these two by themselves, and the embeddable Python for Windows has neither.
        import ensurepip  # noqa: F401
        import venv
    except ImportError as error:
        version = "%d.%d" % sys.version_info[:2]
        sys.exit(
            f"This Python cannot make a virtual environment: it has no module {error.name} ({sys.executable}).\n"
            f"Debian and Ubuntu: sudo apt install python{version}-venv\n"
            "ComfyUI portable: its Python has none; start this with another one, from python.org."
        )
    venv.create(path, symlinks=os.name != "nt", with_pip=True)


def environment(folder: str, use_lowest: bool, needs_more: bool) -> str:
    """The Python of the virtual environment in ``folder``, made if it is not there or is out of date.

    ``needs_more``: also what the fast set does not use.
    """
    path = os.path.join(ROOT, folder)
    python = os.path.join(path, "Scripts" if os.name == "nt" else "bin", "python")
    requirements, tests = read(REQUIREMENTS), read(TEST_REQUIREMENTS)
    made_from = [sys.version, requirements, tests]
    python_is_there = shutil.which(python) is not None  # the one that it is a link to may be gone
    if not python_is_there or not is_made_from(path, "made-from", made_from):
        shutil.rmtree(path, ignore_errors=True)
        print("Making %s ..." % folder, flush=True)
        make_environment(path)
        runner = lowest(requirements) if use_lowest else ["-r", REQUIREMENTS]
        install(python, [*runner, "-r", TEST_REQUIREMENTS])
        note_made_from(path, "made-from", made_from)

    more = [read(MORE_REQUIREMENTS)]
    if needs_more and not is_made_from(path, "made-from-more", more):
        print("Adding to %s ..." % folder, flush=True)
        install(python, ["-r", REQUIREMENTS, "-r", TEST_REQUIREMENTS, "-r", MORE_REQUIREMENTS])
        note_made_from(path, "made-from-more", more)
    return python


def read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def install(python: str, packages: List[str]) -> None:
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *packages], check=True)


def install_node_packages() -> bool:
    """Installs what tests/package-lock.json lists, unless that was done; False, with words, where npm is missing."""
    made_from = [read(os.path.join(NODE_FOLDER, "package-lock.json"))]
    if is_made_from(NODE_PACKAGES, "made-from", made_from):
        return True
    npm = shutil.which("npm")
    if npm is None:
        print("npm is missing, which comes with Node.js: what checks the page is not installed.")
        return False
    print("Making tests/node_modules ...", flush=True)
    quietly = ["--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run([npm, "ci", "--ignore-scripts", *quietly], cwd=NODE_FOLDER, check=True)
    note_made_from(NODE_PACKAGES, "made-from", made_from)
    return True


def digest(texts: List[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def is_made_from(path: str, stamp: str, texts: List[str]) -> bool:
    """Whether the environment in ``path`` has, by its file ``stamp``, what ``texts`` ask for."""
    file = os.path.join(path, stamp)
    return os.path.exists(file) and read(file) == digest(texts)


def note_made_from(path: str, stamp: str, texts: List[str]) -> None:
    with open(os.path.join(path, stamp), "w", encoding="utf-8", newline="\n") as file:
        file.write(digest(texts))


def compile_tests(python: str) -> None:
    """Has pytest rewrite and compile the test files, a share in each process, if it has not done so yet.

    Otherwise each of the fast set's workers does all of them, which is a fifth of its time.
    """
    tests = os.path.join(ROOT, "tests")
    compiled = f"conftest.{sys.implementation.cache_tag}-pytest-*.pyc"
    if glob.glob(os.path.join(tests, "__pycache__", compiled)):
        return
    files = sorted(glob.glob(os.path.join(tests, "test_*.py")))
    count = os.cpu_count() or 1
    collect = [python, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", *NOT_LONG]
    processes = [
        subprocess.Popen([*collect, *files[start::count]], cwd=ROOT, stdout=subprocess.DEVNULL)
        for start in range(count)
    ]
    for process in processes:
        process.wait()


def lint(python: str) -> int:
    """Every check that reads the code; the number of those that failed."""
    checks = {
        "format": [python, "-m", "ruff", "format", "--check", "."],
        "ruff": [python, "-m", "ruff", "check", "."],
        # its command lint-imports finds no package that is not installed: python -c looks in this folder
        "layers": [python, "-c", "from importlinter.cli import lint_imports_command as lint; lint()"],
        "vulture": [python, "-m", "vulture"],  # pyproject.toml says where, and which names only frameworks use
        "mypy": [python, "-m", "mypy", *SCRIPTS, "tests"],
        # 3.8 itself is not everywhere to run: vermin finds what is newer, in syntax and library
        "vermin": [python, "-c", "import vermin; vermin.main()", "--no-tips", "-t=3.8-", *SCRIPTS],
        "coverage": [python, os.path.join("tests", "check_coverage.py")],
    }
    failed = []
    if install_node_packages():
        checks.update(page_checks())
    else:
        failed.append("the page")
    for name, command in checks.items():
        print(f"-- {name}", flush=True)
        if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
            failed.append(name)
    print(f"Failed: {', '.join(failed)}." if failed else "All of these passed.")
    return len(failed)


def page_checks() -> Dict[str, List[str]]:
    """The commands that check the files of the page, and the scripts of its tests."""
    eslint = os.path.join(NODE_PACKAGES, "eslint", "bin", "eslint.js")
    html_validate = os.path.join(NODE_PACKAGES, "html-validate", "bin", "html-validate.mjs")
    page = os.path.join("comfyui_runner", "extras", "console")
    scripts = sorted(glob.glob(os.path.join(NODE_FOLDER, "*.mjs")))
    eslint_config, html_config = (
        os.path.join(NODE_FOLDER, f"{name}.config.mjs") for name in ("eslint", "htmlvalidate")
    )
    return {
        "eslint": ["node", eslint, "--config", eslint_config, f"{page}.js", f"{page}.css", *scripts],
        "html-validate": ["node", html_validate, "--config", html_config, f"{page}.html"],
    }


def run_tests(python: str, arguments: List[str], variables: Dict[str, str], second_try: bool) -> int:
    """Runs pytest in the environment ``variables``; its exit status.

    ``second_try``: if at most MOST_SECOND_TRIES tests fail, they are run again, alone, and that counts.
    """
    with tempfile.TemporaryDirectory() as cache:
        command = [python, "-m", "pytest", "-o", f"cache_dir={cache}", *arguments]
        status = subprocess.run(command, cwd=ROOT, env=variables, check=False).returncode
        failed = failed_tests(cache)
        is_a_few_tests = status == 1 and 0 < len(failed) <= MOST_SECOND_TRIES
        if not (second_try and is_a_few_tests):
            return status
        print(f"\nFailed: {len(failed)}. A second try, alone:", flush=True)
        again = [*command, "--last-failed", "-n", "0"]
        status = subprocess.run(again, cwd=ROOT, env=variables, check=False).returncode
    if status == 0:
        print("Passed at the second try:", *failed, sep="\n  ")
    return status


def failed_tests(cache: str) -> List[str]:
    """The tests that failed last, by their names; ``cache``: pytest's cache folder."""
    path = os.path.join(cache, "v", "cache", "lastfailed")
    if not os.path.exists(path):
        return []
    return sorted(json.loads(read(path)))


def test_one_file(python: str, more: List[str], second_try: bool) -> int:
    """Builds the one file in a folder of its own, and runs on it the tests that drive the program; 0 if all passed."""
    with tempfile.TemporaryDirectory() as folder:
        one_file = os.path.join(folder, "runner.py")
        builder = os.path.join("comfyui_runner", "onefile.py")
        subprocess.run([python, builder, one_file], cwd=ROOT, check=True)
        patterns = [os.path.join("tests", f"test_{name}.py") for name in ONE_FILE_TESTS]
        tests = sorted(path for pattern in patterns for path in glob.glob(os.path.join(ROOT, pattern)))
        variables = {**os.environ, "COMFYUI_RUNNER_UNDER_TEST": one_file}
        variables["COMFYUI_SIGNALS_RUNS"] = "60"  # the long set presses Ctrl+C 200 times
        sets = (FAST_SET, LONG_SET)
        return max(run_tests(python, [*how, *tests, *more], variables, second_try) for how in sets)


def main() -> int:
    """Runs what was asked for; 0 if all passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--lowest", action="store_true")
    choice.add_argument("--coarse-clock", action="store_true")
    choice.add_argument("--long", action="store_true")
    choice.add_argument("--onefile", action="store_true")
    choice.add_argument("--lint", action="store_true")
    choice.add_argument("--bench", action="store_true")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    options = parser.parse_args()
    # Processes that the tests start, and pytest itself, take as long again where nothing stays compiled.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    kind = "lowest" if options.lowest else "tests"
    folder = ".venv-%s-%d.%d" % (kind, *sys.version_info[:2])
    python = environment(folder, options.lowest, needs_more=options.long or options.lint or options.bench)
    second_try = not options.once
    if options.onefile:
        return test_one_file(python, options.pytest, second_try)
    if options.lint:
        return lint(python)
    if options.long:
        install_node_packages()
    if options.bench:
        names = ("runner", "middleware", "conversion", "page")
        benches = [os.path.join("tests", f"bench_{name}.py") for name in names]
        return sum(subprocess.run([python, bench], cwd=ROOT, check=False).returncode != 0 for bench in benches)
    variables = dict(os.environ)
    if options.coarse_clock:
        variables["COMFYUI_TESTS_CLOCK_TICK"] = "0.015625"  # tests/coarse_clock.py
    is_whole_fast_set = not options.long and not options.pytest
    if is_whole_fast_set:
        compile_tests(python)
    tests = LONG_SET if options.long else FAST_SET
    return run_tests(python, [*tests, *options.pytest], variables, second_try)


if __name__ == "__main__":
    sys.exit(main())
