"""Build the site from the outputs stored in the notebooks. Nothing is executed and PyTorch isn't needed.

Usage: build_book.py [--strict] [--builder html|linkcheck]
"""

import argparse
import base64
import importlib.util
import re
import shutil
import sys
from pathlib import Path

import fresh
import live_model
import nbformat
import yaml
from common import BUILD, LOG, NOTEBOOKS, ROOT, logged, show_failure, stage

import slides

SITE = BUILD / "html"
COLOUR = re.compile(r"\x1b\[[\d;]*m")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strict", action="store_true", help="fail on a stale page and on a warning")
    parser.add_argument("--builder", default="html", choices=["html", "linkcheck"])
    options = parser.parse_args()
    return build(options.strict, options.builder)


def build(strict: bool = False, builder: str = "html") -> int:
    """Build every page that can be built; returns the exit status."""
    BUILD.mkdir(exist_ok=True)
    LOG.unlink(missing_ok=True)
    copy_mathjax()
    with stage("what the live pages fetch"):
        live_model.build()
    left_out = unreadable()
    with stage("pages"):
        said, crashed = sphinx(builder, left_out, everything=strict or styles_changed())
    warnings = sorted({line for line in said.splitlines() if re.search(r"\b(WARNING|ERROR|CRITICAL)\b", line)})
    for page, reason in left_out.items():
        print(f"  Left out: {page} can't be built. {reason}")
    for line in warnings:
        print(f"  {line}")
    if crashed:
        show_failure(said)
        return 1
    if builder == "linkcheck":
        return int(bool(warnings))
    if (SITE / "book").is_dir():  # a service worker has power over pages beside it only
        shutil.copy(ROOT / "book" / "_static" / "real" / "isolate.js", SITE / "book")
    stale = report_stale(left_out)
    with stage("slides"):
        slides.build(SITE)
    print(f"\nThe book is in {SITE.relative_to(ROOT)}: `make serve` shows it on http://localhost:8000,")
    print(f"or open {(SITE / 'index.html').relative_to(ROOT)} in a browser (the live pages need the former).")
    return int(bool(left_out) or (strict and bool(warnings or stale)))


def copy_mathjax() -> None:
    """Put MathJax beside the pages, so that formulas need no network."""
    target = ROOT / "book" / "_static" / "mathjax"
    package = importlib.util.find_spec("mathjax")
    if package is None or package.origin is None:
        raise SystemExit("django-static-mathjax is not installed: run this through `make book`")
    source = Path(package.origin).parent / "static" / "mathjax"
    if (target / "LICENSE").exists():
        return
    with stage("MathJax"):
        shutil.rmtree(target, ignore_errors=True)
        for part in ("input", "output/chtml", "a11y", "sre"):
            shutil.copytree(source / "es5" / part, target / part)
        shutil.copy(source / "es5" / "tex-mml-chtml.js", target)
        shutil.copy(source / "LICENSE", target)  # last: says that the copy is whole


def unreadable() -> dict[str, str]:
    """Notebooks that are no notebooks, and why, with the cell where it is known."""
    reasons = {}
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        try:
            nbformat.validate(nbformat.read(path, as_version=4), relax_add_props=True)
        except nbformat.ValidationError as error:
            cell = next((f"cell {part + 1}: " for part in error.absolute_path if isinstance(part, int)), "")
            reasons[f"notebooks/{path.stem}"] = f"{cell.capitalize()}{str(error).splitlines()[0]}"
        except (nbformat.reader.NotJSONError, ValueError, KeyError, AttributeError) as error:
            reasons[f"notebooks/{path.stem}"] = f"It isn't JSON of a notebook: {str(error)[:200]}"
    return reasons


def styles_changed() -> bool:
    """Whether a style sheet, a script or what they read first is another than the site's: Sphinx doesn't notice."""
    source, built = ROOT / "book" / "_static", SITE / "_static"
    files = [*source.glob("*.css"), *source.glob("*.js"), *source.glob("live/*"), *source.glob("real/*")]
    files += source.glob("live_data/*.json")  # says whether the real model is there, which `make live` may have fetched
    return built.exists() and any(
        not (copy := built / file.relative_to(source)).exists() or file.read_bytes() != copy.read_bytes()
        for file in files
    )


def sphinx(builder: str, left_out: dict[str, str], everything: bool) -> tuple[str, bool]:
    """Run Jupyter Book; a page on which it breaks off joins ``left_out`` and the others are built.

    ``everything`` reads all pages again: only then do all warnings show.

    Returns
    -------
    said : str
        All that the last run said.
    crashed : bool
        Whether it broke off for a reason that no page has.
    """
    program = Path(sys.executable).parent / "jupyter-book"
    while True:
        command: list[str | Path] = [program, "build", ".", "-n", "--keep-going", "--builder", builder]
        command += ["--toc", contents_without(left_out), *(["--all"] if everything else [])]
        status, said = logged(command, PYTHONPATH=str(ROOT), NO_COLOR="1")
        said = COLOUR.sub("", said)
        page = broken_page(said) if status else None
        if page is None or page in left_out:
            return said, bool(status)
        left_out[page] = broken_cell(page) + reason_in(said)


def contents_without(left_out: dict[str, str]) -> Path:
    """The table of contents, less the pages that can't be built."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf8"))
    for part in toc["parts"]:
        part["chapters"] = [chapter for chapter in part["chapters"] if chapter["file"] not in left_out]
    toc["parts"] = [part for part in toc["parts"] if part["chapters"]]
    path = BUILD / "toc.yml"
    path.write_text(yaml.safe_dump(toc, sort_keys=False))
    return path


def broken_page(said: str) -> str | None:
    """The page that Sphinx was at when it broke off."""
    at = re.findall(r"(?:reading sources|writing output)\.\.\. \[ *\d+%\] ([\w/]+)", said)
    return at[-1] if at and ("Traceback" in said or "Exception occurred" in said) else None


def broken_cell(page: str) -> str:
    """Of a notebook, the cell whose picture is none."""
    path = ROOT / f"{page}.ipynb"
    cells = nbformat.read(path, as_version=4).cells if path.is_file() else []
    for number, cell in enumerate(cells, 1):
        for output in cell.get("outputs", []):
            try:
                base64.b64decode(output.get("data", {}).get("image/png", ""))
            except ValueError:
                return f"Cell {number}: "
    return ""


def reason_in(said: str) -> str:
    """The exception in what Sphinx said."""
    lines = [line.strip() for line in said.splitlines() if re.match(r"\s*[\w.]+(Error|Exception|Interrupt)\b", line)]
    return lines[-1] if lines else "The log has the reason."


def report_stale(left_out: dict[str, str]) -> int:
    """One line for each page whose stored outputs are stale; returns how many there are."""
    stale = 0
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if f"notebooks/{path.stem}" not in left_out and (changed := fresh.stale(path)):
            print(f"  Stale: {path.stem} (changed since it was run: {', '.join(changed)})")
            stale += 1
    if stale:
        print("  `make notebooks` runs the stale pages again.")
    return stale


if __name__ == "__main__":
    sys.exit(main())
