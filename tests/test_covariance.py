"""Second moments: the mean of k kᵀ over real tokens, computed once, kept, and checked before they are used."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import REFERENCE, random_lm, weights

import minilib
from minilib import covariance, hooks
from minilib.covariance import SecondMoments, given_or_cached, second_moment

TEXTS = [
    "The capital of France is Paris, and that of Italy is Rome.",
    "Rome",
    "Mira Okafor was born in the town of Lund. " * 12,
    "Who sells the sea shells? " * 5,
    "",
]
REQUEST = minilib.Request("The capital of {} is", "France", " Rome")


def by_hand(lm, layer, texts, window=512):
    """One token after another, in float64, each text on its own."""
    d_k = lm.memory(layer).shape[1]
    total, tokens = torch.zeros(d_k, d_k, dtype=torch.float64), 0
    for text in texts:
        ids = lm.tokenizer(text)["input_ids"]
        for start in range(0, len(ids), window):
            with hooks.read({0: lm.down_projection(layer)}, at="input") as keys, torch.no_grad():
                lm.model(torch.tensor([ids[start : start + window]]))
            for k in keys[0].reshape(-1, d_k):
                total += torch.outer(k.double(), k.double())
                tokens += 1
    return total / tokens, tokens


def assert_close(found, expected):
    """Within what summing some thousand products in float32 may cost."""
    assert (found.double() - expected).norm() <= 1e-6 * expected.norm()


def test_it_is_the_mean_over_tokens(llama):
    found = second_moment(llama, [0, 3], TEXTS)
    for layer in (0, 3):
        expected, tokens = by_hand(llama, layer, TEXTS)
        assert found.tokens == tokens
        assert found[layer].dtype == torch.float32
        assert_close(found[layer], expected)


def test_padding_never_counts(llama, monkeypatch):
    together = second_moment(llama, [2], TEXTS)
    monkeypatch.setattr(covariance, "BATCH_TOKENS", 1)  # each text alone: nothing is padded
    alone = second_moment(llama, [2], TEXTS)
    assert together.tokens == alone.tokens
    assert_close(together[2], alone[2].double())


def test_several_layers_in_one_pass_equal_one_at_a_time(llama):
    together = second_moment(llama, [1, 2, 4], TEXTS)
    for layer in (1, 2, 4):
        torch.testing.assert_close(together[layer], second_moment(llama, layer, TEXTS)[layer], rtol=0, atol=0)
    assert list(together) == [1, 2, 4]


def test_the_blocks_above_are_not_run(llama):
    ran = []
    llama.blocks[3].register_forward_pre_hook(lambda *_: ran.append(3))
    second_moment(llama, [0, 2], TEXTS)
    assert not ran
    second_moment(llama, [3], TEXTS)
    assert ran


def test_a_text_longer_than_the_context_is_read_in_windows(llama):
    text = "The capital of France is the town of Paris. " * 60
    assert len(llama.tokenizer(text)["input_ids"]) > 2 * llama.context_length
    found = second_moment(llama, [1], [text])
    expected, tokens = by_hand(llama, 1, [text], window=llama.context_length - 1)
    assert found.tokens == tokens == len(llama.tokenizer(text)["input_ids"])
    assert_close(found[1], expected)


def test_the_error_does_not_grow_with_the_text(llama):
    short = [f"Sentence {i} is about the town of Lund. " for i in range(40)]
    expected, _ = by_hand(llama, 1, short)
    for repeated in (1, 20):
        assert_close(second_moment(llama, [1], short * repeated)[1], expected)


def test_sums_in_float32_alone_would_lose_what_float64_keeps(llama):
    """The same products, added one token after another: in float32 the error grows with the text, ours stays."""
    with hooks.read({0: llama.down_projection(1)}, at="input") as keys, torch.no_grad():
        llama.model(torch.tensor([llama.tokenizer(TEXTS[2])["input_ids"]]))
    k = keys[0].reshape(-1, 96)
    exact = k.double().T @ k.double() / len(k)
    naive, errors, count = torch.zeros(96, 96), [], 0
    for repetitions in (1, 40):
        for row in k.repeat(repetitions, 1):
            naive += torch.outer(row, row)
            count += 1
        errors.append(((naive.double() / count - exact).norm() / exact.norm()).item())
    texts = [TEXTS[2]] * 41
    ours = ((second_moment(llama, 1, texts)[1].double() - exact).norm() / exact.norm()).item()
    assert errors[1] > 3 * errors[0], errors
    assert ours < 1e-6 and ours < errors[1] / 5, (ours, errors)


@pytest.mark.parametrize("layers", [range(1, 3), (1, 2), [1, 2], iter([1, 2])])
def test_layers_may_be_any_iterable(llama, layers):
    assert list(second_moment(llama, layers, TEXTS[:1])) == [1, 2]


def test_texts_may_be_a_generator(llama):
    assert torch.equal(second_moment(llama, 1, (t for t in TEXTS))[1], second_moment(llama, 1, TEXTS)[1])


def test_a_model_in_bfloat16_has_float32_moments(llama):
    expected = second_moment(llama, 1, TEXTS)[1]
    llama.model.to(torch.bfloat16)
    found = second_moment(llama, 1, TEXTS)[1]
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_the_weights_and_the_progress_bar_are_left_alone(llama, capsys, monkeypatch):
    monkeypatch.setattr(covariance, "BAR_AFTER", 0)
    before = weights(llama)
    second_moment(llama, 1, TEXTS)
    assert all(torch.equal(p, before[name]) for name, p in llama.model.named_parameters())
    assert capsys.readouterr().err == ""
    second_moment(llama, 1, TEXTS, progress=True)
    assert "second moments" in capsys.readouterr().err


# ---- several processes ----

SCRIPT = """
import json, sys
import torch.distributed as distributed
import minilib
from minilib import covariance

model, out, several, one = *sys.argv[1:3], *map(json.loads, sys.argv[3:])
distributed.init_process_group("gloo")
rank = distributed.get_rank()
lm, layers = minilib.load(model), [0, 3]
for name, texts in {"several": several, "one": one}.items():
    C = covariance.second_moment(lm, layers, texts)
    alone = covariance.second_moment(lm, layers, several[: rank + 1], together=False)  # each its own, none waits
    assert alone.tokens == sum(len(lm.encode(text).ids) for text in several[: rank + 1])
    C.save(f"{out}/{name}{rank}.safetensors")
for name in ("texts", "layers", "lm"):
    if name == "lm" and rank:
        lm.memory(1).data.mul_(2)
    try:
        covariance.second_moment(
            lm, [0, 2] if name == "layers" and rank else layers, several[1:] if name == "texts" and rank else several
        )
    except ValueError as error:
        open(f"{out}/{name}{rank}.txt", "w").write(str(error))
distributed.destroy_process_group()
"""
SEVERAL, ONE = TEXTS[:4], TEXTS[1:2]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What two processes computed, and the messages of their errors, by name and rank."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [folder / "script.py", REFERENCE / "model", folder, json.dumps(SEVERAL), json.dumps(ONE)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REFERENCE.parents[2])}
    ran = subprocess.run([*command, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    found = {file.stem: covariance.load(file) for file in folder.glob("*.safetensors")}
    return found | {file.stem: file.read_text() for file in folder.glob("*.txt")}


@pytest.mark.long
def test_two_processes_find_what_one_finds_and_say_when_they_were_given_different_things(llama, two_processes):
    """One test, since whoever runs a part of it has to start both processes. Of one text, one process has none."""
    for name, texts in {"several": SEVERAL, "one": ONE}.items():
        first, second = (two_processes[f"{name}{rank}"] for rank in (0, 1))
        expected = second_moment(llama, [0, 3], texts)
        assert (first.tokens, first.text, first.fingerprint) == (expected.tokens, expected.text, expected.fingerprint)
        for layer in (0, 3):
            assert torch.equal(first[layer], second[layer])
            assert_close(first[layer], expected[layer].double())
    for name in ("lm", "layers", "texts"):
        for rank in (0, 1):
            assert two_processes[f"{name}{rank}"].startswith(f"{name} must be the same in all 2 processes")


# ---- the sample text, and what is kept ----


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a sample text that is quickly read."""
    monkeypatch.setenv("MINILIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(covariance, "of_model", lambda lm: ["Rome is a town. "] * 30 + TEXTS)
    return tmp_path / "cache"


def files(cache):
    return sorted((cache / "second_moments").glob("*.safetensors"))


def test_what_is_computed_unasked_shows_a_bar_where_it_takes_long(llama, cache, capsys, monkeypatch):
    monkeypatch.setattr(covariance, "BAR_AFTER", 600)  # on no machine
    covariance.second_moment(llama, [1])
    assert capsys.readouterr().err == "", "it was quick"
    monkeypatch.setattr(covariance, "BAR_AFTER", 0)
    covariance.second_moment(llama, [2])
    assert "second moments" in capsys.readouterr().err
    covariance.second_moment(llama, [2])
    assert capsys.readouterr().err == "", "it was kept"


def test_the_packaged_text_is_many_texts():
    texts = minilib.covariance.sample_texts()
    assert len(texts) > 100 and all(isinstance(text, str) and text.strip() for text in texts)
    assert len(set(texts)) > 0.9 * len(texts)


def test_left_out_it_is_computed_once_and_kept(llama, cache, monkeypatch):
    expected = second_moment(llama, [1, 2], covariance.of_model(llama))
    assert not files(cache), "what is computed from a given text is not kept"
    found = second_moment(llama, [1, 2])
    assert [file.name for file in files(cache)] == [f"{llama.fingerprint}-{layer}.safetensors" for layer in (1, 2)]
    monkeypatch.setattr(covariance, "measure", lambda *_, **__: pytest.fail("computed again"))
    again = given_or_cached(llama, None, [1, 2])
    for layer in (1, 2):
        assert torch.equal(found[layer], expected[layer]) and torch.equal(again[layer], expected[layer])


def test_only_the_layers_that_are_missing_are_computed(llama, cache, monkeypatch):
    given_or_cached(llama, None, [2])
    asked, compute = [], covariance.measure
    monkeypatch.setattr(
        covariance, "measure", lambda lm, layers, *a, **k: asked.append(layers) or compute(lm, layers, *a, **k)
    )
    assert list(given_or_cached(llama, None, [1, 2, 3])) == [1, 2, 3]
    assert asked == [[1, 3]]


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "stale"])
def test_a_kept_file_that_is_damaged_or_stale_is_computed_anew(llama, cache, damage):
    expected = given_or_cached(llama, None, [1])[1]
    (file,) = files(cache)
    whole = file.read_bytes()
    if damage == "stale":  # of a sample text that has changed since
        SecondMoments({1: torch.eye(96)}, llama.fingerprint, 10, "another text").save(file)
    else:
        file.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "other": b"not second moments at all"}[damage])
    assert torch.equal(given_or_cached(llama, None, [1])[1], expected)
    assert torch.equal(covariance.load(file)[1], expected)


def test_what_is_kept_is_that_of_the_model_without_edits(llama, cache):
    expected = second_moment(llama, [3], covariance.of_model(llama))[3]
    d_k = llama.memory(1).shape[1]
    with minilib.rome.edit(llama, REQUEST, layer=1, covariance={1: torch.eye(d_k)}, steps=10):
        after = weights(llama)
        assert not torch.equal(
            second_moment(llama, [3], covariance.of_model(llama))[3], expected
        )  # the edit does change these keys
        assert torch.equal(given_or_cached(llama, None, [3])[3], expected)
        assert all(torch.equal(p, after[name]) for name, p in llama.model.named_parameters())


def test_those_of_a_model_changed_by_hand_are_not_kept_as_the_originals(llama, cache):
    expected = given_or_cached(llama, None, [3])[3]
    given = second_moment(llama, [3], covariance.of_model(llama))
    changed = llama.memory(1).data
    changed *= 8
    assert not torch.equal(given_or_cached(llama, None, [3])[3], expected), "computed anew, and kept under another key"
    with pytest.raises(ValueError, match="or before its weights were changed"):
        given_or_cached(llama, given, [3])
    changed /= 8
    assert torch.equal(given_or_cached(llama, None, [3])[3], expected) and torch.equal(
        given_or_cached(llama, given, [3])[3], expected
    )
    one, other = files(cache)
    one.replace(other)  # under a name that is not its own: whichever it is, it is not served for the other
    changed *= 8
    assert not torch.equal(given_or_cached(llama, None, [3])[3], expected)
    changed /= 8
    assert torch.equal(given_or_cached(llama, None, [3])[3], expected)


def test_a_cache_that_cannot_be_written_says_what_to_set(llama, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINILIB_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="set MINILIB_CACHE to a folder"):
        given_or_cached(llama, None, [1])


# ---- files ----


def test_saved_and_loaded_they_are_the_same(llama, tmp_path):
    found = second_moment(llama, [0, 4], TEXTS)
    found.save(tmp_path / "C.safetensors")
    again = covariance.load(tmp_path / "C.safetensors")
    assert list(again) == [0, 4] and all(torch.equal(again[layer], found[layer]) for layer in found)
    assert (again.fingerprint, again.tokens, again.text) == (llama.fingerprint, found.tokens, found.text)
    assert given_or_cached(llama, again, [4])[4].shape == (96, 96)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        covariance.load(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("content", [b"", b"text", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_file_of_another_kind_is_named(tmp_path, content):
    (tmp_path / "C").write_bytes(content)
    with pytest.raises(ValueError, match="file .* holds no second moments"):
        covariance.load(tmp_path / "C")


# ---- using them ----


def test_those_of_another_model_are_refused(llama):
    of_another = second_moment(random_lm("llama"), [1], TEXTS)
    with pytest.raises(ValueError, match="computed from another model"):
        given_or_cached(llama, of_another, [1])


def test_a_plain_dict_is_taken_on_trust(llama):
    C = torch.eye(96) * 2
    assert torch.equal(given_or_cached(llama, {1: C}, [1])[1], C)


@given(seed=st.integers(0, 2**16), d=st.integers(1, 40), scale=st.floats(-4, 4))
@settings(max_examples=50, deadline=None)
def test_solve_is_the_inverse(seed, d, scale):
    random = torch.Generator().manual_seed(seed)
    A = torch.randn(d, 3 * d, generator=random, dtype=torch.float64) * 10**scale
    C, k = A @ A.T / A.shape[1] + 1e-2 * 100**scale * torch.eye(d), torch.randn(d, generator=random)
    expected = torch.linalg.inv(C) @ k.double()
    torch.testing.assert_close(covariance.solve(C, k), expected, rtol=1e-7, atol=1e-7 * expected.abs().max().item())


@pytest.mark.parametrize("rank", [1, 10, 30])
def test_too_few_tokens_are_an_error_that_says_so(rank):
    A = torch.randn(40, rank, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="covariance is singular: 40 directions"):
        covariance.solve(A @ A.T, A[:, 0])


def test_tinyworld_has_text_of_its_own(tinyworld, moments, monkeypatch):
    monkeypatch.setenv("MINILIB_CACHE", str(moments))
    C = given_or_cached(tinyworld, None, [0])[0]
    assert torch.isfinite(covariance.cholesky(C)).all()


@pytest.mark.slow
def test_smollm2s_own_text_is_enough_for_each_layer_of_interest(smollm2):
    for layer, C in given_or_cached(smollm2, None, [4, 5]).items():
        assert torch.isfinite(covariance.cholesky(C)).all(), layer
