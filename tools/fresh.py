"""Are a notebook's stored outputs current? Each notebook keeps digests of what its outputs were made from.

There are four: its code cells; the data files that it reads; the locked versions of torch and transformers; and the
syntax of the library's modules that it uses, without docstrings and comments. Where one differs, the page is stale.
"""

import ast
import functools
import hashlib
import re
from pathlib import Path
from typing import Any

import nbformat
from common import NOTEBOOKS, ROOT

LIBRARY = ROOT / "minilib"
KEY = "made_from"  # in a notebook's metadata
PARTS = {
    "cells": "its code cells",
    "data": "data that it reads",
    "versions": "the locked torch or transformers",
    "library": "modules of minilib that it uses",
}


def stale(path: Path) -> list[str]:
    """What changed since a notebook's outputs were made, in words; empty when they are current."""
    notebook = nbformat.read(path, as_version=4)
    stored, now = notebook.metadata.get(KEY, {}), digests(notebook)
    return [words for part, words in PARTS.items() if stored.get(part) != now[part]]


def digests(notebook: Any) -> dict[str, str]:
    """The four digests of a notebook as it is now."""
    # The first cell installs the project: its address may change, and no output comes from it.
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"][1:]
    trees = [ast.parse(plain(source)) for source in cells]
    modules = used_modules(trees)
    strings = {text for tree in [*trees, *map(module_tree, modules)] for text in strings_of(tree)}
    files = [file for file in data_files() if names_of(file) & strings]
    lock = (ROOT / "requirements.lock").read_text("utf8")
    return {
        "cells": digest("\0".join(cells)),
        "data": digest("".join(f"{file.name} {file_digest(file)}\n" for file in files)),
        "versions": digest("\n".join(re.findall(r"^(?:torch|transformers)==.*$", lock, re.M))),
        "library": digest("".join(f"{name} {module_digest(name)}\n" for name in sorted(modules))),
    }


def plain(source: str) -> str:
    """A cell without IPython's own lines (%magic, !command)."""
    return "\n".join("" if re.match(r"\s*[%!]", line) else line for line in source.splitlines())


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---- the library -------------------------------------------------------------------------------------


@functools.cache
def module_files() -> dict[str, Path]:
    """Every module of the library by its dotted name below ``minilib``; a folder's __init__ has the folder's name."""
    files = {}
    for path in sorted(LIBRARY.rglob("*.py")):
        parts = path.relative_to(LIBRARY).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


@functools.cache
def module_tree(name: str) -> ast.Module:
    """A module's syntax without docstrings."""
    tree = ast.parse(module_files()[name].read_text("utf8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False):
            node.body = body[1:]
    return tree


@functools.cache
def module_digest(name: str) -> str:
    return digest(ast.dump(module_tree(name)))


def used_modules(trees: list[ast.Module]) -> set[str]:
    """The modules that code names, and all that those import in turn."""
    reached: set[str] = set()
    todo = [name for tree in trees for name in imports(tree, "minilib.")]
    while todo:
        name = todo.pop()
        if name and name not in reached:
            reached.add(name)
            package = name if module_files()[name].stem == "__init__" else name.rpartition(".")[0]
            todo += imports(module_tree(name), f"minilib.{package}." if package else "minilib.")
    return reached


def imports(tree: ast.Module, package: str) -> set[str]:
    """The modules of minilib that code imports, or names as ``minilib.x``; ``package`` is where "." begins."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: -node.level or None] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{source}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            names.add(ast.unparse(node))
    return {module_of(name) for name in names if name.startswith("minilib.")}


@functools.cache
def homes() -> dict[str, str]:
    """Where each module lives that minilib has as an attribute: ``rome`` in ``editors.rome``."""
    return {name.rpartition(".")[2]: name for name in module_files() if name and not name.startswith("course")}


def module_of(name: str) -> str:
    """The module in which ``minilib.a.b`` is found: a.b or a; or the one that minilib takes the name a from."""
    parts = name.split(".")[1:]
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in module_files():
            return ".".join(parts[:end])
    if parts[0] in homes():
        return homes()[parts[0]]
    for node in module_tree("").body:
        if isinstance(node, ast.ImportFrom) and parts[0] in [alias.asname or alias.name for alias in node.names]:
            return node.module or parts[0]
    return ""


# ---- the data ----------------------------------------------------------------------------------------


@functools.cache
def data_files() -> list[Path]:
    return sorted(path for path in (LIBRARY / "data").rglob("*") if path.is_file())


def names_of(file: Path) -> set[str]:
    """The strings by which code names a data file: its name, with or without its ending, or that of its folder.

    Answers of the comparison go by their world, which other strings are named like: only ``load("exact")`` counts.
    """
    folders = set(file.relative_to(LIBRARY / "data").parts[:-1]) - {"results", "text"}
    stem = file.name.partition(".")[0]
    return folders or {file.name, stem, f"load({stem.removeprefix('answers_')})"}


def strings_of(tree: ast.Module) -> set[str]:
    """Every string in the code, and ``load(…)`` of those that a function of this name is given first."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    loads = [call.args[0] for call in calls if ast.unparse(call.func).rpartition(".")[2] == "load"]
    loaded = {f"load({arg.value})" for arg in loads if isinstance(arg, ast.Constant)}
    texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return loaded | {text for text in texts if isinstance(text, str)}


@functools.cache
def file_digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def all_stale() -> dict[Path, list[str]]:
    """Of each stale notebook, why."""
    reasons = {path: stale(path) for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    return {path: changed for path, changed in reasons.items() if changed}
