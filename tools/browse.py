"""A folder served on localhost, and the browser that looks at it: for a reader, the PDF, and the tests of the site."""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

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
# No sandbox: containers and CI run as root. No background networking: only our requests count.
ARGUMENTS = ["--no-sandbox", "--disable-background-networking"]


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and prints nothing."""

    def log_message(self, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # a page asks for thirty files at once, and the default queues five


@contextmanager
def served(folder: Path, port: int = 0, handler: Callable[..., Quiet] = Quiet) -> Iterator[str]:
    """The address of a folder that is served as long as the block lasts; port 0 is any that is free."""
    server = _Server(("localhost", port), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def executable() -> str | None:
    """An installed Chromium or Chrome; None means the one that playwright has downloaded, if any."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    return None
