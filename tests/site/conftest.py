"""A built site on localhost, and a browser to read it with."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from built import SITE, pages

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from browse import ARGUMENTS, executable, served  # noqa: E402


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # One page where there is no site: the run then fails with a message, not with "no tests".
    if "page_path" in metafunc.fixturenames:
        metafunc.parametrize("page_path", pages() or ["index.html"])


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """The address of the served site."""
    if not (SITE / "index.html").exists():
        pytest.fail(f"there is no site in {SITE}: run `make book`, or set BOOK_HTML to the folder of one")
    with served(SITE) as where:
        yield where


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(
                executable_path=executable(),
                args=ARGUMENTS,
            )
        except Error as error:
            how = "no browser for these tests: install Chromium or Chrome, or run .venv/bin/playwright install chromium"
            if os.environ.get("CI") == "true":
                pytest.fail(f"{how}\n{error}")
            pytest.skip(how)
        yield chromium
        chromium.close()
