"""The built site that the tests read. ``BOOK_HTML`` names its folder; without it, the one that `make book` makes."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(os.environ.get("BOOK_HTML", ROOT / "_build" / "html")).resolve()


def pages() -> list[str]:
    """Every page of the site, as paths below its root."""
    found = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
    return [page for page in found if not page.startswith("_")]


@cache
def soup(page: str) -> BeautifulSoup:
    """A page's HTML as it was built, before any script ran: parsed once, and only to be looked at."""
    return BeautifulSoup((SITE / page).read_text("utf8"), "html.parser")


def pages_with_knobs() -> list[str]:
    return [page for page in pages() if soup(page).select_one(".knob")]
