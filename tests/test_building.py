"""The site is built from stored outputs: what makes a page stale, and what a broken page costs the others."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import build_book  # noqa: E402
import fresh  # noqa: E402
import run_notebooks  # noqa: E402
import same_values  # noqa: E402

CELLS = [
    "%pip install the-book",
    "from minilib import stored\nrows = stored.load('speed')\nkept = stored.load('exact'), 'subject'",
    "# a remark\nlen(rows)",
]


def notebook(cells: list[str] = CELLS):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A library of three modules and one result, in the place of minilib."""
    folder = tmp_path / "minilib"
    (folder / "data" / "results").mkdir(parents=True)
    (folder / "data" / "results" / "speed.json").write_text("{}")
    (folder / "data" / "results" / "other.json").write_text("{}")
    for world in ("exact", "subject"):
        (folder / "data" / "results" / f"answers_{world}.jsonl.xz").write_text("{}")
    (folder / "__init__.py").write_text("from .model import load\n")
    (folder / "show").mkdir()
    (folder / "show" / "stored.py").write_text(
        '"""Results."""\nfrom .. import model\n\n\ndef load(name):\n    "Doc."\n    return 1\n'
    )
    (folder / "model.py").write_text("def load(name):\n    return 2\n")
    (folder / "unused.py").write_text("x = 1\n")
    (tmp_path / "requirements.lock").write_text("torch==2.13.0\ntransformers==5.0.0\nnumpy==2.0.0\n")
    monkeypatch.setattr(fresh, "LIBRARY", folder)
    monkeypatch.setattr(fresh, "ROOT", tmp_path)
    return folder


def changed(library: Path, edit) -> set[str]:
    """The parts of the digest that differ after ``edit``."""
    caches = (fresh.module_files, fresh.homes, fresh.module_tree, fresh.module_digest, fresh.data_files)
    caches += (fresh.file_digest,)
    for cached in caches:
        cached.cache_clear()
    before = fresh.digests(notebook())
    cells = edit(library) or CELLS
    for cached in caches:
        cached.cache_clear()
    after = fresh.digests(notebook(cells))
    for cached in caches:
        cached.cache_clear()
    return {part for part in before if before[part] != after[part]}


def replace(name: str, old: str, new: str):
    def edit(library: Path) -> None:
        file = library / name
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    return edit


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (replace("show/stored.py", "return 1", "return 3"), {"library"}),
        (replace("model.py", "return 2", "return 3"), {"library"}),  # reached through stored
        (replace("show/stored.py", "Results.", "Results, and more."), set()),  # a docstring
        (replace("show/stored.py", "return 1", "return 1  # one"), set()),
        (replace("unused.py", "x = 1", "x = 2"), set()),
        (replace("data/results/speed.json", "{}", "[1]"), {"data"}),
        (replace("data/results/other.json", "{}", "[1]"), set()),
        (replace("data/results/answers_exact.jsonl.xz", "{}", "[1]"), {"data"}),
        (replace("data/results/answers_subject.jsonl.xz", "{}", "[1]"), set()),  # a string that nothing loads
        (replace("../requirements.lock", "torch==2.13.0", "torch==2.14.0"), {"versions"}),
        (replace("../requirements.lock", "numpy==2.0.0", "numpy==2.1.0"), set()),
        (lambda _: ["%pip install elsewhere", *CELLS[1:]], set()),  # the first cell installs
        (lambda _: [CELLS[0], CELLS[1], "len(rows) + 1"], {"cells"}),
    ],
)
def test_a_page_is_stale_when_what_its_outputs_were_made_from_changed(library, edit, parts):
    assert changed(library, edit) == parts


@pytest.mark.long
def test_every_notebook_reaches_the_modules_it_names():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"][1:]
        modules = fresh.used_modules([fresh.ast.parse(fresh.plain(cell)) for cell in cells])
        assert len(modules) > 5 and modules <= set(fresh.module_files()), path.name


@pytest.mark.long
def test_outputs_that_came_out_the_same_are_kept(tmp_path, monkeypatch):
    path = tmp_path / "small.ipynb"
    made = notebook(["1", "print('a')", "2 + 2"])
    made.cells.insert(1, nbformat.v4.new_markdown_cell("Some words."))
    nbformat.write(made, path)
    monkeypatch.setattr(run_notebooks, "LOG", tmp_path / "log.txt")
    assert run_notebooks.execute(path, 1)[1] == ""
    first = json.loads(path.read_text())
    first["cells"][2]["execution_count"] = 17  # as it would be had it run in another order
    path.write_text(json.dumps(first, indent=1, ensure_ascii=False) + "\n")
    text = path.read_text()
    assert run_notebooks.execute(path, 1)[1] == ""
    assert path.read_text() == text
    made = notebook(["from minilib import figures\nfigures.glue('one', 3)"])
    nbformat.write(made, path)
    assert run_notebooks.execute(path, 1)[1] == ""
    path.write_text(path.read_text().replace("'one'", "'two'"))
    assert run_notebooks.execute(path, 1)[1] == ""
    assert '"name": "two"' in path.read_text(), "the value is the same, its name is another"
    broken = notebook(["1", "1 / 0", "2"])
    nbformat.write(broken, path)
    text = path.read_text()
    assert run_notebooks.execute(path, 1)[1] == "cell 2: ZeroDivisionError: division by zero"
    assert path.read_text() == text, "a notebook that fails stays as it was"


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_no_progress_bar_is_left_in_a_page(path):
    bar = nbformat.v4.new_output(
        "display_data", data={"text/plain": "v*:   8%|8         | 2/25 [00:02<00:24, 1.09s/it]"}
    )
    assert run_notebooks.is_bar(bar)
    outputs = [o for cell in nbformat.read(path, as_version=4).cells for o in cell.get("outputs", [])]
    assert not any(map(run_notebooks.is_bar, outputs))


def test_the_site_needs_no_torch_and_agrees_with_the_lock():
    def versions(name: str) -> dict[str, str]:
        lines = (ROOT / name).read_text("utf8").splitlines()
        return dict(line.partition(";")[0].strip().split("==") for line in lines)

    site, everything = versions("requirements-book.lock"), versions("requirements.lock")
    assert site.items() <= everything.items(), "run `make lock`"
    assert not {"torch", "transformers", "numpy"} & set(site)


@pytest.mark.long
def test_a_page_that_cannot_be_built_costs_no_other(tmp_path):
    for name in ("tools", "book", "slides", "minilib"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("authors", "live_data", "__pycache__")
        )
    for name in ("_config.yml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")  # slides show their pictures
    pages = ["book/glossary", "notebooks/good", "notebooks/no_json", "notebooks/no_picture"]
    toc = {"format": "jb-book", "root": "book/index", "parts": [{"chapters": [{"file": page} for page in pages]}]}
    (tmp_path / "_toc.yml").write_text(json.dumps(toc))
    made = notebook(["1", "2"])
    made.cells[1].outputs = [nbformat.v4.new_output("display_data", data={"image/png": "no picture"})]
    nbformat.write(made, tmp_path / "notebooks" / "no_picture.ipynb")
    nbformat.write(notebook(["1"]), tmp_path / "notebooks" / "good.ipynb")
    (tmp_path / "notebooks" / "no_json.ipynb").write_text('{"cells": [')
    done = subprocess.run(
        [sys.executable, "tools/build_book.py"], cwd=tmp_path, capture_output=True, text=True, timeout=500
    )
    site = tmp_path / "_build" / "html"
    assert done.returncode == 1, "a page is missing"
    assert (site / "book" / "glossary.html").is_file() and (site / "notebooks" / "good.html").is_file()
    assert not (site / "notebooks" / "no_json.html").exists()
    lines = [line for line in done.stdout.splitlines() if "Left out" in line]
    assert len(lines) == 2, done.stdout
    assert "notebooks/no_json" in lines[0] and "JSON" in lines[0]
    assert "notebooks/no_picture" in lines[1] and "Cell 2" in lines[1]
    assert "The book is in _build/html" in done.stdout


@pytest.mark.long
def test_a_stored_layer_of_the_live_model_is_what_the_library_computes():
    from minilib import covariance, load, tinyworld

    sys.path.insert(0, str(ROOT / "benchmarks"))
    live_model = importlib.import_module("live_model_data")
    lm, layer, some = load("tinyworld"), 2, tinyworld.facts()[:30]
    d_k, d = lm.model.config.intermediate_size, lm.model.config.hidden_size
    content = (ROOT / "book" / "live_model" / f"layer{layer}.bin").read_bytes()
    single = torch.frombuffer(bytearray(content[: 4 * (d_k + d_k**2)]), dtype=torch.float32)
    half = torch.frombuffer(bytearray(content[4 * len(single) :]), dtype=torch.float16).float()
    eigenvalues, U = single[:d_k], single[d_k:].view(d_k, d_k)
    C = covariance.second_moment(lm, [layer])[layer]
    assert (U.T @ eigenvalues.diag() @ U - C).norm() < 1e-3 * C.norm()
    for stored, delta in zip(half.view(2, -1, d), live_model.deltas(lm, layer, some), strict=True):
        # Searched by gradient descent, which drifts a little from one processor to another.
        assert torch.cosine_similarity(stored[: len(some)], delta).median() > 0.99


@pytest.mark.parametrize("tag", ["remove-cell", "remove-input", "hide-input"])
def test_what_the_site_leaves_out_is_folded_in_the_notebook(tag):
    cells = [nbformat.v4.new_code_cell("1", metadata={"tags": tags}) for tags in ([tag], ["other"])]
    for cell in cells:
        run_notebooks.fold(cell)
    assert cells[0].metadata["jupyter"]["source_hidden"] and cells[0].metadata["cellView"] == "form"
    assert "jupyter" not in cells[1].metadata


def test_a_number_that_differs_between_pages_is_listed(tmp_path, monkeypatch):
    def page(name, **values):
        outputs = [
            nbformat.v4.new_output("display_data", {"text/plain": f"'{value}'"}, metadata={"scrapbook": {"name": key}})
            for key, value in values.items()
        ]
        cell = nbformat.v4.new_code_cell("figures.glue(...)", outputs=outputs)
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / f"{name}.ipynb")

    page("01", kept="0.5", told="3 of 4", lone="7")
    page("02", kept="0.5", told="4 of 4")
    monkeypatch.setattr(same_values, "NOTEBOOKS", tmp_path)
    assert same_values.differing() == {"told": {"01": "3 of 4", "02": "4 of 4"}}


@pytest.mark.parametrize("name", ["custom.css", "live/page.js", "live_data/about.json"])
def test_what_stands_beside_the_pages_is_copied_again_when_it_changed(tmp_path, monkeypatch, name):
    """Sphinx copies nothing when no page has changed, such as for `make live` after `make book`."""
    monkeypatch.setattr(build_book, "ROOT", tmp_path)
    monkeypatch.setattr(build_book, "SITE", tmp_path / "html")
    source, built = tmp_path / "book" / "_static" / name, tmp_path / "html" / "_static" / name
    for file in (source, built):
        file.parent.mkdir(parents=True)
        file.write_text("as it was", "utf8")
    assert not build_book.styles_changed()
    source.write_text("with the real model", "utf8")
    assert build_book.styles_changed()
    built.unlink()
    assert build_book.styles_changed()
