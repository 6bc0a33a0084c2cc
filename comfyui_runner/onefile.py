"""Joins the script and the package into one file that runs anywhere:

    python -m comfyui_runner.onefile FILE
    python comfyui_runner/onefile.py FILE

The file has everything but the simulator. It starts more slowly than the script, because Python compiles all of
it each time. It is made to be copied, not to be edited or committed: change the script and the package instead.
"""

from __future__ import annotations

import ast
import os
import sys
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple, Union

PACKAGE = "comfyui_runner"
PACKAGE_FOLDER = os.path.dirname(os.path.abspath(__file__))
SCRIPT = os.path.join(os.path.dirname(PACKAGE_FOLDER), "comfyui_workflow_runner.py")

#: Modules that are not part of the program: this one, and the simulator's.
LEFT_OUT = ("comfyui_runner.onefile", "comfyui_runner.simulator")

#: In the script: what follows the first line is replaced by the modules, up to the second one.
FIRST_REPLACED_LINE = "# -- the folder beside this script "
FIRST_KEPT_LINE = "def collect_defaults("

#: The module that reads files of the package, and the files that become part of the one file.
RESOURCES_MODULE = "comfyui_runner.resources"
RESOURCES = ("console.html", "openapi.json")

Import = Union[ast.Import, ast.ImportFrom]


class BuildError(Exception):
    """The modules cannot be joined. The message says which names or modules, and what to change."""


class Module(NamedTuple):
    """The source of one module of the package."""

    name: str  # with the package: comfyui_runner.text
    source: str

    @property
    def tree(self) -> ast.Module:
        """The parsed source."""
        return ast.parse(self.source, self.name)


# -- reading the package -------------------------------------------------------------------------------


def read_modules(folder: str = PACKAGE_FOLDER) -> List[Module]:
    """Every module that the one file is made of, in no particular order."""
    modules = []
    for parent, _, files in os.walk(folder):
        for file in files:
            name = module_name(os.path.relpath(os.path.join(parent, file), os.path.dirname(folder)))
            if not file.endswith(".py") or name.startswith(LEFT_OUT):
                continue
            with open(os.path.join(parent, file), encoding="utf-8") as source:
                modules.append(Module(name, source.read()))
    return modules


def module_name(path: str) -> str:
    """The dotted name of the module in ``path``, relative to the project's folder."""
    parts = os.path.splitext(path)[0].split(os.sep)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


# -- what a module imports and defines -----------------------------------------------------------------


def is_ours(statement: ast.stmt) -> bool:
    """Whether ``statement`` imports names from a module that becomes part of the one file."""
    if not isinstance(statement, ast.ImportFrom):
        return False
    module = statement.module or ""
    in_package = module == PACKAGE or module.startswith(PACKAGE + ".")
    return in_package and not module.startswith(LEFT_OUT)


def modules_needed(module: Module) -> Set[str]:
    """The modules that must come before ``module``: those that it imports from when it is itself imported."""
    return {str(statement.module) for statement in module.tree.body if is_ours(statement)}  # type: ignore[attr-defined]


def sort_modules(modules: Sequence[Module]) -> List[Module]:
    """``modules`` in an order in which each comes after those that it needs. Raises BuildError for a circle."""
    left = {module.name: module for module in modules}
    core_first = sorted(left, key=lambda name: (".extras" in name, name))
    ordered: List[Module] = []
    while left:
        ready = [
            name
            for name in core_first
            if name in left and not modules_needed(left[name]) & left.keys()
        ]
        if not ready:
            raise BuildError(
                f"These modules import each other in a circle: {', '.join(sorted(left))}."
            )
        ordered += [left.pop(name) for name in ready]
    return ordered


def defined_names(module: Module) -> Iterator[str]:
    """The names that a module defines at its top level, private ones too."""
    for statement in module.tree.body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield statement.name
            continue
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            continue
        yield from assigned_names(statement)


def assigned_names(node: ast.AST) -> Iterator[str]:
    """The names that ``node`` assigns to in its own scope."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    has_its_own_scope = isinstance(
        node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda)
    )
    if has_its_own_scope:
        return
    for child in ast.iter_child_nodes(node):
        yield from assigned_names(child)


def check_names(modules: Iterable[Module], imported: Set[str]) -> None:
    """Raises BuildError for a name that two modules define, or that also names an import."""
    owners: Dict[str, str] = {}
    for module in modules:
        for name in set(defined_names(module)):
            if name in owners:
                raise BuildError(
                    f"Both {owners[name]} and {module.name} define {name}: rename one of them."
                )
            if name in imported:
                raise BuildError(
                    f"{module.name} defines {name}, which other modules import: rename it."
                )
            owners[name] = module.name


# -- joining -------------------------------------------------------------------------------------------


def external_imports(modules: Iterable[Module]) -> List[Import]:
    """The imports at the top of ``modules`` of what is not ours."""
    imports: List[Import] = []
    for module in modules:
        for statement in module.tree.body:
            if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
                continue
            if isinstance(statement, (ast.Import, ast.ImportFrom)) and not is_ours(statement):
                imports.append(statement)
    return imports


def import_lines(imports: Iterable[Import]) -> List[str]:
    """One line for each module that is imported, with all names that are imported from it. Raises BuildError."""
    plain: Set[str] = set()
    names: Dict[str, Set[str]] = {}
    for statement in imports:
        for alias in statement.names:
            if alias.asname:
                raise BuildError(
                    f"import ... as {alias.asname}: modules of the package import names as they are."
                )
            if isinstance(statement, ast.Import):
                plain.add(f"import {alias.name}")
            else:
                names.setdefault(str(statement.module), set()).add(alias.name)
    return sorted(plain) + [
        f"from {name} import {', '.join(sorted(names[name]))}" for name in sorted(names)
    ]


def names_of_imports(imports: Iterable[Import]) -> Set[str]:
    """The names that imports bind."""
    return {alias.name.partition(".")[0] for statement in imports for alias in statement.names}


def module_text(module: Module) -> str:
    """A module as a section of the one file: its docstring as a comment, then its code without its imports."""
    lines: List[Optional[str]] = list(module.source.splitlines())
    tree = module.tree
    docstring = ast.get_docstring(tree)
    removed: List[ast.stmt] = [
        node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    if docstring:
        removed.append(tree.body[0])
    removed += [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and is_ours(node)]
    for statement in removed:
        blank_out(lines, statement)
    rule = "# " + "=" * 98
    title = [f"# {line}".rstrip() for line in f"{module.name}: {docstring or ''}".splitlines()]
    return "\n".join([rule, *title, rule, "", *close_gaps(lines)]).rstrip("\n")


def blank_out(lines: List[Optional[str]], statement: ast.stmt) -> None:
    """Marks the lines of ``statement`` as removed."""
    for number in range(statement.lineno - 1, int(statement.end_lineno or statement.lineno)):
        lines[number] = None


def close_gaps(lines: Iterable[Optional[str]]) -> Iterator[str]:
    """The lines that are left (None: removed), without the blank ones that follow a removed one for nothing."""
    previous = ""
    after_gap = True
    for line in lines:
        if line is None:
            after_gap = True
            continue
        is_needless = after_gap and not line and not previous
        if is_needless:
            continue
        after_gap = False
        previous = line
        yield line


def resources_module(texts: Dict[str, str]) -> Module:
    """What stands in the place of the module that reads files: their texts, and a function that returns them."""
    lines = ['"""The files that the program serves."""', "", "RESOURCE_TEXTS = {"]
    for name, text in texts.items():
        quoted = text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
        lines.append(f'    "{name}": """{quoted}""",')
    lines += [
        "}",
        "",
        "",
        "def read_resource(name: str) -> str:",
        '    """The text of one of them."""',
    ]
    lines.append("    return RESOURCE_TEXTS[name]")
    return Module(RESOURCES_MODULE, "\n".join(lines) + "\n")


def split_script(script: str) -> Tuple[str, str]:
    """The script before and after the lines that find the package. Raises BuildError."""
    first, last = script.find("\n" + FIRST_REPLACED_LINE), script.find("\n" + FIRST_KEPT_LINE)
    if not 0 < first < last:
        raise BuildError(
            f"The script has no line {FIRST_REPLACED_LINE!r} before {FIRST_KEPT_LINE!r}."
        )
    return script[: first + 1], script[last + 1 :]


def join(script: str, modules: Sequence[Module]) -> str:
    """The one file. Raises BuildError if the modules cannot be joined."""
    before, after = split_script(script)
    story = Module("the script", after)
    imports = external_imports([*modules, story])
    check_names([*modules, story], names_of_imports(imports))
    stripped_story = module_text(story).split("\n", 3)[3]  # without the title of a section
    parts = [
        before.rstrip("\n"),
        "# -- the package: one section for each of its modules, those that others stand on first "
        + "-" * 14,
        "HERE = os.path.dirname(os.path.abspath(__file__))",
        "\n".join(f"{line}  # noqa: E402" for line in import_lines(imports)),
        *("\n" + module_text(module) for module in sort_modules(modules)),
        "\n" + stripped_story.strip("\n"),
    ]
    return "\n\n".join(parts) + "\n"


def build() -> str:
    """The one file, from the script and the package beside it. Raises BuildError."""
    with open(SCRIPT, encoding="utf-8") as file:
        script = file.read()
    texts = {}
    for name in RESOURCES:
        with open(os.path.join(PACKAGE_FOLDER, "extras", name), encoding="utf-8") as file:
            texts[name] = file.read()
    modules = [module for module in read_modules() if module.name != RESOURCES_MODULE]
    return join(script, [*modules, resources_module(texts)])


def main(arguments: Sequence[str]) -> int:
    """Writes the one file; the exit status."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        text = build()
        with open(arguments[0], "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except (BuildError, OSError) as error:
        print(f"The file was not made: {error}", file=sys.stderr)
        return 1
    print(f"Written: {arguments[0]} ({len(text.splitlines())} lines)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
