"""Build the site: fetch what pages need, run the notebooks that changed, and let no warning pass.

Usage: build_book.py [--committed] [--builder html|linkcheck]
"""

import argparse
import hashlib
import importlib.util
import re
import shutil
import sys
from pathlib import Path

from common import BUILD, ROOT, fetch_model, run, say

import slides

CACHE = BUILD / ".jupyter_cache"
COMMITTED_SITE = BUILD / "committed" / "_build" / "html"  # made from the outputs stored in the notebooks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--committed", action="store_true", help="use the outputs stored in the notebooks; run none")
    parser.add_argument("--builder", default="html", choices=["html", "linkcheck"])
    options = parser.parse_args()
    return build(options.committed, options.builder)


def build(committed: bool = False, builder: str = "html") -> int:
    """Build with warnings as errors; returns the exit status."""
    BUILD.mkdir(exist_ok=True)
    copy_mathjax()
    # In a process of its own: it needs torch, which whoever only imports this file does not.
    if builder == "html" and run("python", ROOT / "tools" / "live_model.py"):
        return 1
    arguments: list[str | Path] = ["build", ".", "-W", "-n", "--keep-going", "--builder", builder]
    site = COMMITTED_SITE if committed else BUILD / "html"
    if committed:
        say("Building the site from the committed outputs")
        shutil.rmtree(BUILD / "committed", ignore_errors=True)  # a page that was removed must not stay
        arguments += ["--quiet", "--path-output", BUILD / "committed", "--config", config_without_execution()]
    else:
        if fetch_model():
            return 1
        drop_stale_cache()
        say("Running the notebooks that changed and building the site; the first time takes some minutes")
    status = run("jupyter-book", *arguments)
    if not status and builder == "html":
        slides.build(site)
        say(f"The site is in {site.relative_to(ROOT)}" + ("" if committed else "; `make serve` shows it"))
    return status


def copy_mathjax() -> None:
    """Put MathJax beside the pages, so that formulas need no network."""
    target = ROOT / "book" / "_static" / "mathjax"
    package = importlib.util.find_spec("mathjax")
    if package is None or package.origin is None:
        raise SystemExit("django-static-mathjax is not installed: run this through `make book`")
    source = Path(package.origin).parent / "static" / "mathjax"
    if (target / "LICENSE").exists():
        return
    say("Copying MathJax into book/_static")
    shutil.rmtree(target, ignore_errors=True)
    for part in ("input", "output/chtml", "a11y", "sre"):
        shutil.copytree(source / "es5" / part, target / part)
    shutil.copy(source / "es5" / "tex-mml-chtml.js", target)
    shutil.copy(source / "LICENSE", target)  # last: says that the copy is whole


def config_without_execution() -> Path:
    """A copy of _config.yml that runs no notebook."""
    text, changed = re.subn(r"execute_notebooks: *\w+", "execute_notebooks: 'off'", (ROOT / "_config.yml").read_text())
    if changed != 1:
        raise SystemExit("_config.yml must say execute_notebooks exactly once")
    path = BUILD / "config_without_execution.yml"
    path.write_text(text)
    return path


def drop_stale_cache() -> None:
    """jupyter-cache looks at a notebook's cells only; a changed library must run them all again."""
    files = [*sorted((ROOT / "minilib").rglob("*.py")), ROOT / "requirements.lock"]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    made_with = BUILD / ".library"
    if CACHE.exists() and not (made_with.exists() and made_with.read_text() == digest):
        say("The library or the lock file changed: every notebook is run again")
        shutil.rmtree(CACHE)
    made_with.write_text(digest)


if __name__ == "__main__":
    sys.exit(main())
