"""Show _build/html on localhost. Usage: serve.py [port]."""

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

from common import BUILD


def main() -> int:
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    handler = partial(SimpleHTTPRequestHandler, directory=str(BUILD / "html"))
    try:
        server = ThreadingHTTPServer(("localhost", port), handler)
    except OSError as error:
        print(
            f"port {port} cannot be used ({error.strerror}); try another: make serve PORT={port + 1}", file=sys.stderr
        )
        return 1
    print(f"The book is on http://localhost:{port} - stop with Ctrl-C", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
