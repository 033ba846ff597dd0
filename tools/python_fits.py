"""Exit with 0 where this Python can make the virtual environment: 3.11 to 3.13, with venv and pip.

Written so that much older Pythons, which the Makefile may try, can run it too.
"""

import sys

fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
if fits:
    import ensurepip  # noqa: F401  Debian ships Python without it
    import venv  # noqa: F401
sys.exit(not fits)
