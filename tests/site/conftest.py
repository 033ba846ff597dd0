"""A built site on localhost, and a browser to read it with."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from built import SITE, pages, pages_with_knobs

BROWSERS = (
    "/usr/bin/chromium",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # One page where there is no site: the run then fails with a message, not with "no tests".
    if "page_path" in metafunc.fixturenames:
        metafunc.parametrize("page_path", pages() or ["index.html"])
    if "page_with_knobs" in metafunc.fixturenames:
        metafunc.parametrize("page_with_knobs", pages_with_knobs() or ["index.html"])


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """The address of the served site."""
    if not (SITE / "index.html").exists():
        pytest.fail(f"there is no site in {SITE}: run `make book`, or set BOOK_HTML to the folder of one")
    server = ThreadingHTTPServer(("localhost", 0), partial(_Quiet, directory=str(SITE)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://localhost:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def executable() -> str | None:
    """An installed Chromium or Chrome; None means the one that playwright has downloaded, if any."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    return None


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(
                executable_path=executable(),
                # No sandbox: containers and CI run as root. No background networking: only our requests count.
                args=["--no-sandbox", "--disable-background-networking"],
            )
        except Error as error:
            how = "no browser for these tests: install Chromium or Chrome, or run .venv/bin/playwright install chromium"
            if os.environ.get("CI") == "true":
                pytest.fail(f"{how}\n{error}")
            pytest.skip(how)
        yield chromium
        chromium.close()
