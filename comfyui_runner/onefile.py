"""Joins the script and the package into one file that runs anywhere:

    python -m comfyui_runner.onefile FILE
    python comfyui_runner/onefile.py FILE

The file holds everything but the simulator. It begins as the script does, with the settings and the
story; the modules of the package follow, a section each. It starts more slowly than the script,
because Python compiles all of it each time. It is made to be copied and run: to change more than
the settings, change the script and the package, and build it again.
"""

from __future__ import annotations

import ast
import builtins
import io
import os
import sys
import textwrap
from typing import Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Set, Tuple, Union

PACKAGE = "comfyui_runner"
PACKAGE_FOLDER = os.path.dirname(os.path.abspath(__file__))
SCRIPT = os.path.join(os.path.dirname(PACKAGE_FOLDER), "comfyui_workflow_runner.py")

#: Modules that are not part of the program: this one, and the simulator's.
LEFT_OUT = ("comfyui_runner.onefile", "comfyui_runner.simulator")

#: The script's docstring, from these words on, is about the folder: ONE_FILE_NOTE replaces it.
FOLDER_NOTE = "This is the script that you read, edit and run"
ONE_FILE_NOTE = """\
This is the whole program as one file, without the simulator (--demo). The settings come first, then
the story of a run, step by step; below them, how each step is done, one subject a section. To
change more than the settings, change the project that it was built from, and build it again:

    python comfyui_runner/onefile.py FILE
"""

#: In the script, the lines from the first of these up to the second one find the package. They are
#: left out.
FIRST_LINE_LEFT_OUT = "# -- the folder beside this script "
FIRST_LINE_AFTER_IT = "def collect_defaults("

#: In the package's __init__.py, what follows this line only gives names of other modules. The one
#: file has them anyway.
FIRST_LINE_OF_NAMES = "# -- the Python API: "

#: The module that reads files of the package, and the files that become part of the one file.
RESOURCES_MODULE = "comfyui_runner.resources"
RESOURCES = ("console.html", "console.css", "console.js", "openapi.json")

WIDTH = 100

Import = Union[ast.Import, ast.ImportFrom]

#: Expressions that bind names of their own, which the module around them does not see.
WITH_THEIR_OWN_SCOPE = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda)


class BuildError(Exception):
    """The modules cannot be joined. The message says which names or modules, and what to change."""


class Module:
    """A module of the package by its full name (comfyui_runner.text), its source, and its tree."""

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source
        self.tree = ast.parse(source, name)

    @property
    def docstring(self) -> str:
        """The module's docstring, or an empty text."""
        return ast.get_docstring(self.tree) or ""

    @property
    def imports(self) -> List[Import]:
        """The imports at the top of the module."""
        body = self.tree.body
        return [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]

    @property
    def is_extra(self) -> bool:
        """Whether the module goes beyond the two modes."""
        return self.name.startswith(f"{PACKAGE}.extras")


# -- reading the project ---------------------------------------------------------------------------


def read_text(path: str) -> str:
    """The text of a file of the project, its line ends normalized."""
    with open(path, encoding="utf-8") as file:
        return file.read()


def read_modules(folder: str = PACKAGE_FOLDER) -> List[Module]:
    """Every module that the one file is made of, in no particular order."""
    modules = []
    for parent, _, files in os.walk(folder):
        for file in files:
            path = os.path.join(parent, file)
            name = module_name(os.path.relpath(path, os.path.dirname(folder)))
            if file.endswith(".py") and not name.startswith(LEFT_OUT):
                modules.append(read_module(name, path))
    return modules


def read_module(name: str, path: str) -> Module:
    """The module in ``path``; of the package's __init__.py only what is not about other modules."""
    source = read_text(path)
    if name == PACKAGE:
        source = source.partition(f"\n{FIRST_LINE_OF_NAMES}")[0]
    return Module(name, source)


def module_name(path: str) -> str:
    """The dotted name of the module in ``path``, relative to the project's folder."""
    parts = os.path.splitext(path)[0].split(os.sep)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def make_resources_module(texts: Mapping[str, str]) -> Module:
    """What replaces the module that reads files: their texts, and a function that returns them."""
    lines = ['"""The files that the program serves."""', "", "RESOURCE_TEXTS = {"]
    for name, text in texts.items():
        if '"""' in text or text.endswith(("\\", '"')):
            raise BuildError(
                f'{name} cannot become a raw Python text: it contains """, or ends with \\ or ".'
            )
        lines.append(f'    "{name}": r"""{text}""",')
    lines += [
        "}",
        "",
        "",
        "def read_resource(name: str) -> str:",
        '    """The text of one of them."""',
        "    return RESOURCE_TEXTS[name]",
    ]
    return Module(RESOURCES_MODULE, "\n".join(lines) + "\n")


# -- what a module imports and defines -------------------------------------------------------------


def imports_in(module: Module) -> Iterator[Import]:
    """Every import of ``module``, inside functions too."""
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node


def is_of_ours(statement: Import) -> bool:
    """Whether ``statement`` imports names from a module that becomes part of the one file."""
    if isinstance(statement, ast.Import):
        return False
    module = statement.module or ""
    is_in_package = module == PACKAGE or module.startswith(f"{PACKAGE}.")
    return is_in_package and not module.startswith(LEFT_OUT)


def external_imports(modules: Iterable[Module]) -> List[Import]:
    """The imports at the top of ``modules`` from Python and from other packages."""
    external = []
    for module in modules:
        for statement in module.imports:
            if not is_of_ours(statement) and not is_of_the_future(statement):
                external.append(statement)
    return external


def is_of_the_future(statement: Import) -> bool:
    """Whether ``statement`` is ``from __future__ import ...``, which the script has as well."""
    return isinstance(statement, ast.ImportFrom) and statement.module == "__future__"


def names_of_imports(imports: Iterable[Import]) -> Set[str]:
    """The names that imports bind: ``import os.path`` binds ``os``."""
    names = set()
    for statement in imports:
        for alias in statement.names:
            bound, _, _ = alias.name.partition(".")
            names.add(bound)
    return names


def names_bound_by(node: ast.AST) -> Iterator[str]:
    """The names that ``node`` defines or assigns to in the scope that it is in."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
        return
    if isinstance(node, WITH_THEIR_OWN_SCOPE):
        return
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
        return
    for child in ast.iter_child_nodes(node):
        yield from names_bound_by(child)


# -- what cannot be joined -------------------------------------------------------------------------


def check_imports(modules: Iterable[Module]) -> None:
    """Raises BuildError unless our modules are imported by ``from comfyui_runner.x import y``."""
    for module in modules:
        for statement in imports_in(module):
            for alias in statement.names:
                check_import(module, statement, alias)


def check_import(module: Module, statement: Import, alias: ast.alias) -> None:
    """Raises BuildError if the one file cannot have what ``statement`` imports as ``alias``."""
    where = f"{module.name}, line {statement.lineno}"
    becomes_global = statement in module.imports or is_of_ours(statement)
    if becomes_global and alias.asname is not None:
        raise BuildError(f"{where}: import ... as {alias.asname}: import names as they are.")

    is_our_module = f"{alias.name}.".startswith(f"{PACKAGE}.")
    if is_our_module and isinstance(statement, ast.Import):
        raise BuildError(
            f"{where}: import {alias.name}: import names from it instead of the module."
        )


def check_names(modules: Iterable[Module], imported: Set[str]) -> None:
    """Raises BuildError for a name that two modules define, an import binds too, or Python has."""
    owners: Dict[str, str] = {}  # the module that defines a name
    for module in modules:
        for name in sorted(set(names_bound_by(module.tree))):
            if name in owners:
                raise BuildError(
                    f"Both {owners[name]} and {module.name} define {name}: rename one of them."
                )
            if name in imported:
                raise BuildError(
                    f"{module.name} defines {name}, which other modules import: rename it."
                )
            if hasattr(builtins, name):
                raise BuildError(
                    f"{module.name} defines {name}, which is a built-in of Python: rename it."
                )
            owners[name] = module.name


def check_syntax(text: str) -> None:
    """Raises BuildError if the joined text is not valid Python.

    That happens where an import that was left out was the only statement of a block.
    """
    try:
        ast.parse(text)
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise BuildError(f"The result is not valid Python: {error.msg}, at {line!r}.") from None


# -- joining ---------------------------------------------------------------------------------------


def sort_modules(modules: Sequence[Module]) -> List[Module]:
    """``modules`` so that each comes after those that it imports from, and the extras last.

    Raises BuildError for a circle.
    """
    left = {module.name: module for module in modules}
    ordered: List[Module] = []
    while left:
        ready = [module for module in left.values() if not modules_needed(module) & left.keys()]
        if not ready:
            circle = ", ".join(sorted(left))
            raise BuildError(f"These modules import each other in a circle: {circle}.")
        ready_core = [module for module in ready if not module.is_extra]
        for module in sorted(ready_core or ready, key=lambda module: module.name):
            ordered.append(module)
            del left[module.name]
    return ordered


def modules_needed(module: Module) -> Set[str]:
    """The modules from which ``module`` imports when it is itself imported."""
    needed = set()
    for statement in module.imports:
        if isinstance(statement, ast.ImportFrom) and is_of_ours(statement):
            needed.add(str(statement.module))
    return needed


def import_lines(imports: Iterable[Import]) -> List[str]:
    """The imports, sorted and without doubles, one statement for each module."""
    whole_modules: Set[str] = set()
    names_by_module: Dict[str, Set[str]] = {}
    for statement in imports:
        imported = {alias.name for alias in statement.names}
        if isinstance(statement, ast.Import):
            whole_modules |= imported
        else:
            names_by_module.setdefault(statement.module or "", set()).update(imported)

    lines = [f"import {module}" for module in sorted(whole_modules)]
    for module, names in sorted(names_by_module.items()):
        lines.append(from_import_line(module, names))
    return lines


def from_import_line(module: str, names: Iterable[str]) -> str:
    """The statement that imports ``names``, in parentheses where it is longer than a line."""
    listed = ", ".join(sorted(names))
    line = f"from {module} import {listed}"
    if len(line) <= WIDTH:
        return line
    wrapped = textwrap.indent(textwrap.fill(listed, WIDTH - 5), "    ")
    return f"from {module} import (\n{wrapped},\n)"


def table_of_contents(modules: Sequence[Module]) -> str:
    """A line of comment for each module: its name, and the first line of its docstring."""
    width = max((len(module.name) for module in modules), default=0)
    lines = []
    for module in modules:
        summary = module.docstring.partition("\n")[0]
        line = f"{module.name:{width}}  {summary}".rstrip()
        lines += textwrap.wrap(line, WIDTH - 4, subsequent_indent=" " * (width + 2))
    return "\n".join(f"#   {line}" for line in lines)


def heading(title: str) -> str:
    """A comment that begins a part of the file."""
    return f"# -- {title} ".ljust(WIDTH, "-")


def section_of(module: Module) -> str:
    """A module as a section of the one file: its docstring as a comment, and its code."""
    rule = "# " + "=" * (WIDTH - 2)
    title = [module.name, "", *module.docstring.splitlines()]
    comment = [f"# {line}".rstrip() for line in title]
    return "\n".join([rule, *comment, rule, "", "", code_of(module)])


def code_of(module: Module, *left_out: ast.stmt) -> str:
    """The code of a module without its docstring, its imports and the statements ``left_out``.

    Imports inside functions stay where they are, unless they import from our modules.
    """
    lines: List[Optional[str]] = list(module.source.splitlines())
    for statement in left_out:
        remove_lines(lines, statement)
    if module.docstring:
        remove_lines(lines, module.tree.body[0])
    for statement in imports_in(module):
        if statement in module.imports or is_of_ours(statement):
            remove_lines(lines, statement)
    return "\n".join(close_gaps(lines)).strip("\n")


def remove_lines(lines: List[Optional[str]], statement: ast.stmt) -> None:
    """Set the lines of ``statement`` to None, and around it what belongs to it alone.

    That is a comment above it, and inside a function the blank lines below it.
    """
    indent = statement.col_offset
    first = statement.lineno - 1  # an index in ``lines``: line numbers begin with 1
    end = statement.end_lineno or statement.lineno
    while first > 0 and is_comment(lines[first - 1], indent):
        first -= 1

    is_inside_function = indent > 0
    while is_inside_function and end < len(lines) and lines[end] == "":
        end += 1
    for index in range(first, end):
        lines[index] = None


def is_comment(line: Optional[str], indent: int) -> bool:
    """Whether ``line`` is a comment at this indent and nothing else."""
    return line is not None and line.startswith(" " * indent + "# ")


def close_gaps(lines: Iterable[Optional[str]]) -> Iterator[str]:
    """The lines that are left (None: removed); where two groups of blank lines meet, only one."""
    previous = ""
    is_after_gap = True
    for line in lines:
        if line is None:
            is_after_gap = True
            continue
        both_are_blank = not line and not previous
        if is_after_gap and both_are_blank:
            continue
        is_after_gap = False
        previous = line
        yield line


def split_script(script: str) -> Tuple[Module, Module]:
    """The script before and after the lines that find the package. Raises BuildError."""
    first = script.find(f"\n{FIRST_LINE_LEFT_OUT}")
    last = script.find(f"\n{FIRST_LINE_AFTER_IT}")
    if not 0 < first < last:
        raise BuildError(
            f"The script has no line {FIRST_LINE_LEFT_OUT!r} before {FIRST_LINE_AFTER_IT!r}."
        )
    return Module("the script", script[: first + 1]), Module("the script", script[last + 1 :])


def first_part_of(settings: Module, imports: Iterable[Import]) -> str:
    """The script up to its settings, with a docstring for the one file and with all imports."""
    before_note, _, rest = settings.source.partition(FOLDER_NOTE)
    _, end_of_docstring, after_docstring = rest.partition('"""')
    if not end_of_docstring:
        raise BuildError(f"The script's docstring does not say {FOLDER_NOTE!r}.")
    docstring = f"{before_note}{ONE_FILE_NOTE}{end_of_docstring}"

    before_imports, future, after = after_docstring.partition("from __future__ import annotations")
    start = f"{docstring}{before_imports}{future}"
    imported = "\n".join(import_lines(imports))
    code = code_of(Module("the script", after))
    return "\n\n".join([start, imported, code])


def is_call(statement: ast.stmt) -> bool:
    """Whether ``statement`` is for a file that is called, not imported: ``if __name__ == ...``."""
    if not isinstance(statement, ast.If):
        return False
    names = [node.id for node in ast.walk(statement.test) if isinstance(node, ast.Name)]
    return "__name__" in names


def join(script: str, modules: Sequence[Module]) -> str:
    """The one file. Raises BuildError if the modules cannot be joined."""
    settings, story = split_script(script)
    parts = [settings, story, *modules]
    imports = external_imports(parts)
    check_imports(parts)
    check_names(parts, names_of_imports(imports))

    # The script's first call answers --help before it imports the rest, which the one file cannot:
    # Python reads all of it first. So only the last call remains, at the end.
    calls = [statement for statement in story.tree.body if is_call(statement)]
    last_call = [f"\n{ast.get_source_segment(story.source, call)}" for call in calls[-1:]]

    ordered = sort_modules(modules)
    ordered.sort(key=lambda module: module.name == RESOURCES_MODULE)  # long, so it comes last
    sections = [f"\n{section_of(module)}" for module in ordered]

    blocks = [
        first_part_of(settings, imports),
        "HERE = os.path.dirname(os.path.abspath(__file__))",
        f"\n{code_of(story, *calls)}",
        "\n" + heading("how each step is done: a section for each module of the project"),
        table_of_contents(ordered),
        *sections,
        "\n" + heading("the start"),
        *last_call,
    ]
    text = "\n\n".join(blocks)
    check_syntax(text)
    return f"{text}\n"


# -- the command -----------------------------------------------------------------------------------


def build() -> str:
    """The one file, from the script and the package beside it. Raises BuildError."""
    texts = {name: read_text(os.path.join(PACKAGE_FOLDER, "extras", name)) for name in RESOURCES}
    modules = [module for module in read_modules() if module.name != RESOURCES_MODULE]
    return join(read_text(SCRIPT), [*modules, make_resources_module(texts)])


def main(arguments: Sequence[str]) -> int:
    """Writes the one file; the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # The encoding of a pipe on Windows may lack letters of the path.
            stream.reconfigure(errors="replace")
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    path = arguments[0]
    try:
        if os.path.exists(path) and os.path.samefile(path, SCRIPT):
            raise BuildError("FILE is the script itself: choose another name.")
        text = build()
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except (BuildError, OSError) as error:
        print(f"The file was not made: {error}", file=sys.stderr)
        return 1
    print(f"Written: {path} ({len(text.splitlines())} lines)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
