"""Rules that hold for the whole repository: one address, floors of the library, notebooks and their outputs."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import minilib

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = ROOT / "pyproject.toml"
PROJECT = tomllib.loads(PYPROJECT.read_text("utf8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
OWNER_AND_NAME = "/".join(REPOSITORY.split("/")[-2:])
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# A module imports only from floors below its own.
FLOORS = {
    1: "requests hooks architectures storage downloads tokens answers refusals ties losses saving stored display "
    "figures drawings widgets statistics verdicts",
    2: "model",
    3: "loading forward guards covariance editor edits facts readers texts tinyworld authors footprint settings "
    "training loop prompting filtering recipes directions",
    4: "values window tracing metrics",
    5: "rome memit alphaedit grace wise unlearning",
    6: "methods edit_files asking detours attacks inside steering suggesting sequence tasks rows audit "
    "report_page reporting",
}
FLOOR = {module: floor for floor, modules in FLOORS.items() for module in modules.split()}


def tracked() -> list[Path]:
    """The files that a clone would hold: those git knows, and new ones that it does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.fail(f"these tests need git and a clone of the repository: {error}")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def texts() -> dict[str, str]:
    """Every tracked text, by its path below the root."""
    found = {}
    for path in tracked():
        try:
            found[path.relative_to(ROOT).as_posix()] = path.read_text("utf8")
        except UnicodeDecodeError:
            continue
    return found


# ---- one address ----

ADDRESSES = re.compile(
    r"(?:github\.com|colab\.research\.google\.com/github|mybinder\.org/v2/gh|raw\.githubusercontent\.com)"
    r"/([\w.-]+/[\w.-]*[\w-])"
)


def test_the_repository_has_one_address():
    owner, name = OWNER_AND_NAME.split("/")
    wrong = []
    for path, text in texts().items():
        for match in ADDRESSES.finditer(text):
            found = match.group(1).removesuffix(".git")
            # Of other projects' links only those are ours that share the owner or the name.
            ours = (
                owner in found.split("/") or name in found.split("/") or "minilib" in found or "colab" in match.group()
            )
            if (ours or "mybinder" in match.group()) and found != OWNER_AND_NAME:
                wrong.append(f"{path}: {match.group()}")
    assert not wrong, f"the repository is {REPOSITORY} (pyproject.toml), but:\n" + "\n".join(wrong)


def test_config_and_citation_name_the_repository():
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf8"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf8"))
    assert config["repository"]["url"] == REPOSITORY
    assert citation["repository-code"] == REPOSITORY
    assert citation["url"] == PROJECT["urls"]["Documentation"]
    assert citation["version"] == PROJECT["version"]


@pytest.mark.long
def test_the_address_of_a_copy_is_written_everywhere(tmp_path):
    for path, text in texts().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, "utf8")
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)

    def move(url: str) -> None:
        subprocess.run([sys.executable, "tools/address.py", url], cwd=tmp_path, check=True, capture_output=True)

    owner, name = "A-Teacher", "my.copy-2"  # apart, so that moving back leaves this line alone
    move(f"https://github.com/{owner}/{name}.git")
    after = {path: (tmp_path / path).read_text("utf8") for path in texts()}
    old = [path for path, text in after.items() if OWNER_AND_NAME in text or PROJECT["urls"]["Documentation"] in text]
    assert not old, f"these still have the old address: {old}"
    assert f"https://{owner.lower()}.github.io/{name}" in after["CITATION.cff"]
    assert f"cd {name}\n" in after["book/index.md"]
    assert f'name = "{PROJECT["name"]}"' in after["pyproject.toml"], "the distribution keeps its name"
    rules = "one_address or name_the_repository or share_their_first_cell"
    checks = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", "-k", rules]
    checks.append("tests/test_project.py")
    result = subprocess.run(checks, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0 and "3 passed" in result.stdout, result.stdout
    move(REPOSITORY)
    assert {path: (tmp_path / path).read_text("utf8") for path in texts()} == texts(), "there and back"


@pytest.mark.parametrize("url", ["", "github.com/you/copy", "https://gitlab.com/you/copy", "https://github.com/you"])
def test_an_address_that_has_no_badges_is_refused(url):
    result = subprocess.run([sys.executable, "tools/address.py", url], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and "URL must be like" in result.stdout


def test_nobody_is_sent_to_another_package():
    # On PyPI "minilib" is somebody else's package.
    wrong = re.compile(r"(pip|uv|conda)3?\s+(add|install)\s+(-\S+\s+)*[\"']?minilib\b")
    found = [path for path, text in texts().items() if path != "tests/test_project.py" and wrong.search(text)]
    assert not found, f"the distribution is called {PROJECT['name']}, not minilib: {found}"


def test_no_large_file():
    large = [path.relative_to(ROOT).as_posix() for path in tracked() if path.stat().st_size > 6_000_000]
    assert not large, f"over 6 MB: {large}"


# ---- the library ----


LIBRARY = ROOT / "minilib"


def imported(path: Path) -> set[str]:
    """The modules of minilib that a module imports, inside functions too, by the names of their files."""
    found, here = set(), list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text("utf8"))):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "minilib"):
            above = here[: len(here) - node.level + 1] if node.level else []
            module = [*above, *(node.module or "").split(".")] if node.module else above
            if (ROOT / "/".join(module)).with_suffix(".py").is_file():
                found.add(module[-1])
            else:  # a folder, whose modules are named, or what its own file holds
                inside = [a.name for a in node.names if (ROOT / "/".join(module) / f"{a.name}.py").is_file()]
                folders = [a.name for a in node.names if (ROOT / "/".join(module) / a.name).is_dir()]
                found |= {*inside, *folders, *([module[-1]] if len(inside + folders) < len(node.names) else [])}
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            assert ["minilib"] not in names, "import the modules of minilib, not the package from inside itself"
            found |= {name[-1] for name in names if name[0] == "minilib"}
    return found - {"minilib"}


def name_of(path: Path) -> str:
    return path.parent.name if path.stem == "__init__" else path.stem


MODULES = [
    path
    for path in sorted(LIBRARY.rglob("*.py"))
    if "course" not in path.parts and (path.stem != "__init__" or path.parent.name == "unlearning")
]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_import_from_lower_floors_only(path):
    name = name_of(path)
    assert name in FLOOR, f"say in FLOORS which floor {path.relative_to(ROOT)} stands on"
    # On a floor a module may use those named before it. Methods never use each other.
    floor = FLOORS[FLOOR[name]].split()
    beside = [] if FLOOR[name] == 5 else floor[: floor.index(name)]
    for other in imported(path):
        assert other in FLOOR, f"{path.relative_to(ROOT)} imports {other!r}, which is on no floor"
        assert FLOOR[other] < FLOOR[name] or other in beside, (
            f"{path.relative_to(ROOT)} (floor {FLOOR[name]}) imports {other} (floor {FLOOR[other]})"
        )


def test_names_of_modules_are_unique():
    """Each is an attribute of minilib, whichever folder it lives in."""
    names = [name_of(path) for path in MODULES]
    assert len(set(names)) == len(names)
    assert set(names) == set(minilib.MODULES) | {"unlearning"}


def test_nothing_in_the_library_rests_on_the_course():
    """minilib/course stands on top of all floors: an assignment can be deleted without a look at the library."""
    for path in MODULES:
        assert "course" not in imported(path), f"{path.relative_to(ROOT)} imports the course"


@pytest.mark.parametrize("folder", sorted(p.parent.name for p in (ROOT / "assignments").glob("*/master.ipynb")))
def test_an_assignment_has_points_hints_and_a_rubric(folder):
    cells = json.loads((ROOT / "assignments" / folder / "master.ipynb").read_text("utf8"))["cells"]
    raw = ["".join(c["source"]) for c in cells if c["cell_type"] == "raw"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    questions = [r for r in raw if r.startswith("# BEGIN QUESTION")]
    assert sum(float(re.search(r"points: ([\d.]+)", q)[1]) for q in questions) == 20
    assert 5 <= len(questions) <= 9 and f"name: {folder}\n" in raw[0]
    assert text.count("<summary>Hint</summary>") == text.count("<summary>A bigger hint</summary>") == len(questions) - 1
    assert "*Rubric:*" in text and all(
        word in text for word in ("You learn", "You need", "Time", "Difficulty", "Points")
    )
    assert not any(c.get("outputs") for c in cells), "a master has no outputs"


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_scripts_name_what_the_library_has(path):
    """They run for minutes to hours, so no test runs them; a name that was moved would show only then."""
    tree = ast.parse(path.read_text("utf8"))
    taken = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "minilib"]
    modules = {a.asname or a.name: getattr(minilib, a.name) for n in taken for a in n.names}
    used = {
        (n.value.id, n.attr) for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
    }
    missing = [f"{name}.{attr}" for name, attr in used if name in modules and not hasattr(modules[name], attr)]
    assert not missing, f"benchmarks/{path.name} uses what is not there: {missing}"


# ---- installing ----

CUDA = ("nvidia-", "cuda-", "triton")  # of torch's wheels for GPUs: Colab's CPU image has another, and pip keeps it


@pytest.mark.slow
def test_colab_keeps_what_it_has_and_gets_little_more(tmp_path):
    """The first cell of a notebook replaces no package there: that would mean restarting the runtime."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tmp_path / "uv"), "uv"]
    fetched = subprocess.run(pip, capture_output=True, text=True)
    if fetched.returncode:
        pytest.skip(f"no package index can be reached: {fetched.stderr.strip()[-200:]}")
    setting = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]  # uv does not read pip's settings
    index = os.environ.get("PIP_INDEX_URL") or subprocess.run(setting, capture_output=True, text=True).stdout.strip()
    there = ROOT / "tests" / "colab-2026-08.txt"
    compile = ["pip", "compile", "pyproject.toml", "--python-version=3.13", "--constraint", there, "--no-annotate"]
    result = subprocess.run(
        [tmp_path / "uv" / "bin" / "uv", *compile, "--no-header"],
        cwd=ROOT,
        env={**os.environ, "UV_PYTHON_DOWNLOADS": "never"} | ({"UV_DEFAULT_INDEX": index} if index else {}),
        capture_output=True,
        text=True,
    )
    if re.search("error sending request|dns error|timed out", result.stderr, re.I):
        pytest.skip(f"no package index can be reached: {result.stderr.strip()[-200:]}")
    assert result.returncode == 0, f"with what Colab has, there is no way to install this:\n{result.stderr}"

    def names(lines: str) -> set[str]:
        found = re.findall(r"^([\w.-]+)==", lines, re.M)
        return {name.lower().replace("_", "-") for name in found}

    added = {name for name in names(result.stdout) - names(there.read_text("utf8")) if not name.startswith(CUDA)}
    assert {"gguf", "jaxtyping"} <= added, "these Colab does not have"
    assert len(added) <= 4, f"a reader on Colab would wait for {sorted(added)}"


# ---- the book ----


def test_every_page_of_the_contents_exists():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf8"))
    names = [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]
    missing = [name for name in names if not any((ROOT / f"{name}{suffix}").is_file() for suffix in (".md", ".ipynb"))]
    assert not missing, f"_toc.yml names pages that are not there: {missing}"
    unlisted = [path.stem for path in NOTEBOOKS if f"notebooks/{path.stem}" not in names]
    assert not unlisted, f"notebooks that _toc.yml does not name: {unlisted}"


def code_cells(path: Path) -> list[dict]:
    cells = json.loads(path.read_text("utf8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def test_there_are_notebooks():
    assert NOTEBOOKS, "no notebook in notebooks/"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_rules(path):
    cells = code_cells(path)
    assert any(re.search(r"^\s*assert\b", source(cell), re.M) for cell in cells), "no claim is asserted"
    shown = [cell for cell in cells if not HIDDEN & set(cell["metadata"].get("tags", []))]
    long = [source(cell).splitlines()[0] for cell in shown if len(source(cell).splitlines()) > 40]
    assert not long, f"code cells of over 40 lines, which start with: {long}"
    not_run = [source(cell)[:60] for cell in cells if source(cell).strip() and not cell["execution_count"]]
    assert not not_run, f"committed without outputs (`make notebooks` runs them): {not_run}"
    failed = [source(cell)[:60] for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert not failed, f"committed with an error: {failed}"


def test_notebooks_share_their_first_cell():
    first = {path.name: source(code_cells(path)[0]) for path in NOTEBOOKS}
    assert len(set(first.values())) == 1, f"the cell that installs the project differs between {sorted(first)}"
    assert f"{REPOSITORY}" in next(iter(first.values())), f"the first cell must install from {REPOSITORY}"


# ---- what a reader sees ----

TAUGHT = sorted((ROOT / "notebooks").glob("0[1-8]_*.ipynb"))  # the chapters that were written anew
HIDDEN = {"remove-cell", "remove-input", "hide-input", "hide-cell"}


def visible(path: Path) -> list[str]:
    """The code cells whose source the site shows, the one that installs apart."""
    cells = [c for c in json.loads(path.read_text("utf8"))["cells"] if c["cell_type"] == "code"][1:]
    return ["".join(c["source"]) for c in cells if not HIDDEN & set(c["metadata"].get("tags", []))]


@pytest.mark.parametrize("path", TAUGHT, ids=lambda path: path.stem)
def test_the_code_that_a_chapter_shows_is_code_that_teaches(path):
    lengths = [len(cell.splitlines()) for cell in visible(path)]
    assert max(lengths) <= 25 and statistics.median(lengths) <= 12, lengths
    assert path.stem != "04_rome" or sum(lengths) <= 120
    bookkeeping = [cell for cell in visible(path) if re.search(r"^\s*assert |figures\.glue\(", cell, re.M)]
    assert not bookkeeping, f"checks and glued numbers belong into cells that the site leaves out: {bookkeeping[:1]}"


# ---- undefined names ----


@pytest.mark.parametrize(
    "name", ["minilib/editors/rome.py", "tools/grade.py", "tests/models.py", "benchmarks/scores.py", "notebook.ipynb"]
)
def test_an_undefined_name_is_found(name, tmp_path):
    """Shapes are strings that could be taken for names: written so that neither ruff nor mypy does."""
    code = "def f() -> int:\n    return undefined_name\n"
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".ipynb":
        cell = {"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": 1, "source": code}
        file.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    else:
        file.write_text((ROOT / name).read_text("utf8") + f"\n\n{code}", "utf8")
    assert "F821 Undefined name `undefined_name`" in said_by("ruff", "check", "--output-format", "concise", file)
    if name.startswith("minilib"):
        for folder in (file.parent, file.parent.parent):
            (folder / "__init__.py").touch()
        alone = ["--follow-imports", "skip", "--cache-dir", tmp_path / "cache"]
        assert 'Name "undefined_name" is not defined' in said_by("mypy", *alone, "--config-file", PYPROJECT, file)


def said_by(command, *arguments):
    """What a checker says of a file, run with the project's settings."""
    program = [sys.executable, "-m", command, *map(str, arguments)]
    done = subprocess.run(program, cwd=arguments[-1].parent, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout
