"""Show _build/html on localhost. Usage: serve.py [port]."""

import sys
import threading

from browse import served
from common import BUILD


def main() -> int:
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    try:
        with served(BUILD / "html", port) as address:
            print(f"The book is on {address} - stop with Ctrl-C", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        print()
    except OSError as error:
        other = f"try another: make serve PORT={port + 1}"
        print(f"port {port} cannot be used ({error.strerror}); {other}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
