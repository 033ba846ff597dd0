"""Write another address of the repository everywhere: badges, first cells, metadata, citation.

For whoever publishes a copy: `make address URL=https://github.com/you/your-copy`. The old address is the one in
pyproject.toml, and GitHub Pages decides where the documentation is. Nothing is committed. Needs no installation.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GITHUB = re.compile(r"https://github\.com/([A-Za-z0-9-]+)/([\w.-]+?)(?:\.git)?/?")


def main(url: str) -> int:
    new = GITHUB.fullmatch(url)
    if new is None:
        print(f"URL must be like https://github.com/you/your-copy, not {url!r}: badges for others are not known here")
        return 2
    project = (ROOT / "pyproject.toml").read_text("utf8")
    old = GITHUB.fullmatch(re.search(r'^Repository = "(.+)"', project, re.M)[1])
    changed = 0
    for path in tracked_files():
        before = path.read_bytes()
        try:
            after = moved(before.decode(), old.groups(), new.groups()).encode()
        except UnicodeDecodeError:  # a picture, a model
            continue
        if after != before:
            path.write_bytes(after)
            changed += 1
    print(
        f"{changed} files name https://github.com/{'/'.join(new.groups())} now; the pages are at {pages(*new.groups())}"
    )
    return 0


def moved(text: str, old: tuple[str, str], new: tuple[str, str]) -> str:
    """The text with the new owner and name wherever it had an address of the old ones."""
    # What follows must not be more of a name: .../copy is not part of .../copy-2.
    end = r"(?![\w-])"
    text = re.sub(rf"(?<![\w.-]){re.escape('/'.join(old))}{end}", "/".join(new), text)
    text = re.sub(re.escape(pages(*old)) + end, pages(*new), text)
    # The folder that `git clone` makes is called as the repository is.
    return re.sub(rf"(git clone \S+/{re.escape(new[1])}\s+cd ){re.escape(old[1])}{end}", rf"\g<1>{new[1]}", text)


def pages(owner: str, name: str) -> str:
    """Where GitHub Pages shows a repository."""
    host = f"{owner.lower()}.github.io"
    return f"https://{host}" if name.lower() == host else f"https://{host}/{name}"


def tracked_files() -> list[Path]:
    """The files that git knows, and new ones that it does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout.decode().split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file() and not (ROOT / name).is_symlink()]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2] or [""]))
