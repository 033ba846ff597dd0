"""The whole book as one PDF, printed from the built pages by Chromium, in the order of the contents.

Run: python tools/pdf.py [PAGE ...]  (`make pdf`); with names of pages, as book/glossary, only these.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import yaml
from browse import ARGUMENTS, executable, served
from common import BUILD, ROOT, say
from playwright.sync_api import sync_playwright
from pypdf import PdfWriter

# What only a screen needs, and notes that are folded: a reader of paper cannot open them.
PAPER = """
.bd-sidebar-primary, .bd-sidebar-secondary, .bd-header-article, .prev-next-footer, .copybtn, .live-knobs {
  display: none !important;
}
.bd-main .bd-content .bd-article-container { max-width: none !important }
#print-main-content > #jb-print-toc, .toggle-button { display: none !important }
pre, pre * { white-space: pre-wrap !important; overflow-wrap: anywhere }
div.cell_input, figure, tr { break-inside: avoid }
table { font-size: 0.8em; break-inside: auto !important }
article th, article td { padding: 2px 4px !important; white-space: normal !important; min-width: 0 !important }
"""


def contents() -> list[str]:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf8"))
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


def make(pages: list[str], site: Path, target: Path) -> Path:
    """Print pages and put them together, with a bookmark for each."""
    writer = PdfWriter()
    with served(site) as address, tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=ARGUMENTS)
        page = browser.new_page(color_scheme="light")
        page.set_default_timeout(120_000)
        for i, name in enumerate(pages):
            page.goto(f"{address}/{name}.html", wait_until="networkidle")
            page.add_style_tag(content=PAPER)
            page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
            page.evaluate("window.MathJax && MathJax.startup ? MathJax.startup.promise.then(() => 0) : 0")
            title = page.locator("h1").first.inner_text().rstrip("#").strip()
            file = Path(folder, f"{i}.pdf")
            margin = {"top": "18mm", "bottom": "18mm", "left": "16mm", "right": "16mm"}
            page.pdf(path=str(file), format="A4", margin=margin, scale=0.8, print_background=True)
            writer.append(str(file), outline_item=title)
        browser.close()
        target.parent.mkdir(parents=True, exist_ok=True)
        writer.write(str(target))
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", default=contents())
    parser.add_argument("--site", type=Path, default=BUILD / "html")
    parser.add_argument("--out", type=Path, default=BUILD / "unlearning-as-editing.pdf")
    given = parser.parse_args()
    missing = [name for name in given.pages if not (given.site / f"{name}.html").is_file()]
    if missing:
        parser.error(f"{given.site} has no page {missing[0]}: run `make book` first")
    say(f"Printing {len(given.pages)} pages")
    made = make(given.pages, given.site, given.out)
    say(f"{made}: {made.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
