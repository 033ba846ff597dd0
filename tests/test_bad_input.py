"""Bad input: the error names the argument and the fix, and the model is bit for bit what it was."""

import json
import shutil

import numpy
import peft
import pytest
import tokenizers
import torch
import transformers
from models import REFERENCE, assert_same_weights, random_lm, weights
from test_hooks import hooks_left

import minilib
from minilib import Request, alphaedit, covariance, memit, metrics, refusals, rome, values

LAYER = 2
REQUEST = Request("The capital of {} is", "France", " Rome")


def edit(lm, C, requests=REQUEST, **changed):
    return rome.edit(lm, requests, **{"layer": LAYER, "covariance": C, "steps": 3, **changed})


def batch(lm, C, requests=REQUEST, **changed):
    return memit.edit(lm, requests, **{"layers": [1, LAYER], "covariance": C, "steps": 3, **changed})


def changed(C, function):
    """C with its moment of the edited layer put through ``function``."""
    return {**C, LAYER: function(C[LAYER])}


def of_another_model(lm, C):
    return covariance.SecondMoments(C, fingerprint="0123456789abcdef", tokens=1, text="")


# What goes wrong: a call, the error's type, and words that its message must hold.
WRONG_EDITS = {
    "lm is no LM": (lambda lm, C: edit(lm.model, C), TypeError, "lm must be a minilib.LM minilib.load"),
    "lm is no LM, by name": (
        lambda lm, C: rome.edit(lm="gpt2", requests=REQUEST),
        TypeError,
        "lm must be minilib.LM str",
    ),
    "requests is a string": (lambda lm, C: edit(lm, C, "France"), TypeError, "requests must be minilib.Request str"),
    "requests is a number": (lambda lm, C: edit(lm, C, 3), TypeError, "requests must be minilib.Request int"),
    "requests is None": (lambda lm, C: edit(lm, C, None), TypeError, "requests must be minilib.Request"),
    "requests is empty": (lambda lm, C: edit(lm, C, []), ValueError, "requests is empty give at least one"),
    "requests holds a string": (
        lambda lm, C: edit(lm, C, [REQUEST, "x"]),
        TypeError,
        "requests[1] must be minilib.Request",
    ),
    "layer above the last": (lambda lm, C: edit(lm, C, layer=6), ValueError, "layer 6 has layers 0 to 5"),
    "layer below 0": (lambda lm, C: edit(lm, C, layer=-1), ValueError, "layer -1 has layers 0 to 5"),
    "layer is a bool": (lambda lm, C: edit(lm, C, layer=True), TypeError, "layer must be a whole number True"),
    "layer is a float": (lambda lm, C: edit(lm, C, layer=2.0), TypeError, "layer must be a whole number 2.0"),
    "layer is a string": (lambda lm, C: edit(lm, C, layer="2"), TypeError, "layer must be a whole number '2'"),
    "layer is a list": (lambda lm, C: edit(lm, C, layer=[2]), TypeError, "layer must be a whole number [2]"),
    "covariance is a tensor": (lambda lm, C: edit(lm, C[LAYER]), TypeError, "covariance must be a dict second_moment"),
    "covariance is a list": (lambda lm, C: edit(lm, [C[LAYER]]), TypeError, "covariance must be a dict list"),
    "covariance lacks the layer": (
        lambda lm, C: edit(lm, {0: C[LAYER], "x": C[LAYER]}),
        ValueError,
        "covariance has no layer 2 second_moment",
    ),
    "covariance is empty": (lambda lm, C: edit(lm, {}), ValueError, "covariance has no layer 2 second_moment"),
    "covariance holds an array": (
        lambda lm, C: edit(lm, changed(C, lambda c: c.numpy())),
        TypeError,
        "covariance[2] must be a tensor ndarray",
    ),
    "covariance holds whole numbers": (
        lambda lm, C: edit(lm, changed(C, lambda c: c.long())),
        TypeError,
        "covariance[2] must be a tensor of floating-point numbers torch.int64",
    ),
    "covariance of wrong shape": (
        lambda lm, C: edit(lm, changed(C, lambda c: c[:-1, :-1])),
        ValueError,
        "covariance[2] must have shape (96, 96) (95, 95)",
    ),
    "covariance is a vector": (
        lambda lm, C: edit(lm, changed(C, lambda c: c[0])),
        ValueError,
        "covariance[2] must have shape (96, 96) (96,)",
    ),
    "covariance holds NaN": (
        lambda lm, C: edit(lm, changed(C, lambda c: c * torch.nan)),
        ValueError,
        "covariance[2] NaN compute it again",
    ),
    "covariance holds infinity": (
        lambda lm, C: edit(lm, changed(C, lambda c: c / 0)),
        ValueError,
        "covariance[2] infinite compute it again",
    ),
    "covariance is zero": (
        lambda lm, C: edit(lm, changed(C, torch.zeros_like)),
        ValueError,
        "covariance[2] is zero compute it",
    ),
    "covariance is singular": (
        lambda lm, C: edit(lm, changed(C, lambda c: torch.outer(c[0], c[0]))),
        ValueError,
        "covariance is singular more texts",
    ),
    "covariance is negative": (lambda lm, C: edit(lm, changed(C, lambda c: -c)), ValueError, "covariance is singular"),
    "covariance is not symmetric": (
        lambda lm, C: edit(lm, changed(C, lambda c: c + 10 * c.triu(1))),
        ValueError,
        "covariance[2] is not symmetric",
    ),
    "covariance of another model": (
        lambda lm, C: edit(lm, of_another_model(lm, C)),
        ValueError,
        "covariance was computed from another model compute it again",
    ),
    "no chat template": (
        lambda lm, C: edit(lm, C, Request("Where is {}?", "Rome", "x", chat=True)),
        ValueError,
        "chat=True needs a chat template use chat=False",
    ),
    "second request has no chat template": (
        lambda lm, C: edit(lm, C, [REQUEST, Request("Where is {}?", "Rome", "x", chat=True)]),
        ValueError,
        "chat=True needs a chat template use chat=False",
    ),
    "unknown keyword": (
        lambda lm, C: edit(lm, C, learning_rate=1),
        TypeError,
        "rome.edit has no keyword 'learning_rate'",
    ),
    "misspelt keyword": (lambda lm, C: edit(lm, C, step=3), TypeError, "'step' did you mean 'steps'?"),
    "steps is 0": (lambda lm, C: edit(lm, C, steps=0), ValueError, "steps must be a whole number of at least 1"),
    "steps is negative": (lambda lm, C: edit(lm, C, steps=-3), ValueError, "steps must be at least 1"),
    "steps is a float": (lambda lm, C: edit(lm, C, steps=2.5), TypeError, "steps must be a whole number 2.5"),
    "steps is a bool": (lambda lm, C: edit(lm, C, steps=True), TypeError, "steps must be a whole number True"),
    "lr is 0": (lambda lm, C: edit(lm, C, lr=0), ValueError, "lr must be finite and above 0"),
    "lr is negative": (lambda lm, C: edit(lm, C, lr=-0.1), ValueError, "lr must be finite and above 0"),
    "lr is NaN": (lambda lm, C: edit(lm, C, lr=float("nan")), ValueError, "lr must be finite nan"),
    "lr is infinite": (lambda lm, C: edit(lm, C, lr=float("inf")), ValueError, "lr must be finite inf"),
    "lr is a string": (lambda lm, C: edit(lm, C, lr="0.1"), TypeError, "lr must be a number '0.1'"),
    "clamp_factor is 0": (lambda lm, C: edit(lm, C, clamp_factor=0), ValueError, "clamp_factor must be above 0"),
    "clamp_factor is negative": (
        lambda lm, C: edit(lm, C, clamp_factor=-1),
        ValueError,
        "clamp_factor must be above 0",
    ),
    "kl_factor is negative": (lambda lm, C: edit(lm, C, kl_factor=-1), ValueError, "kl_factor must be at least 0"),
    "weight_decay is NaN": (
        lambda lm, C: edit(lm, C, weight_decay=float("nan")),
        ValueError,
        "weight_decay must be finite",
    ),
    "seed is negative": (lambda lm, C: edit(lm, C, seed=-1), ValueError, "seed must be at least 0"),
    "keys is unknown": (
        lambda lm, C: edit(lm, C, keys="foo"),
        ValueError,
        "keys must be 'averaged' 'prompt' 'mixed' 'foo'",
    ),
    "contexts is one string": (lambda lm, C: edit(lm, C, contexts="{}"), TypeError, "contexts must be a list ['{}']"),
    "contexts is a number": (lambda lm, C: edit(lm, C, contexts=3), TypeError, "contexts must be a list 3"),
    "contexts is empty": (
        lambda lm, C: edit(lm, C, contexts=[]),
        ValueError,
        "contexts is empty at least one template",
    ),
    "contexts without a slot": (
        lambda lm, C: edit(lm, C, contexts=["Yes."]),
        ValueError,
        "contexts exactly one {} 'Yes.'",
    ),
    "prompt too long": (
        lambda lm, C: edit(lm, C, Request("a " * 400 + "{} is", "France", " x")),
        ValueError,
        "the prompt has reads shorten",
    ),
    "prompt too long in a context": (
        lambda lm, C: edit(lm, C, contexts=["{}", "Rome " * 250 + "{}"]),
        ValueError,
        "the prompt has reads shorten",
    ),
    "target too long": (
        lambda lm, C: edit(lm, C, [REQUEST, Request("{} is", "France", " Rome" * 300)]),
        ValueError,
        "prompt and target reads 256 shorten",
    ),
    "contexts is another word": (
        lambda lm, C: edit(lm, C, contexts="random"),
        TypeError,
        'contexts must be "sampled" or a list',
    ),
    "memit: empty batch": (lambda lm, C: batch(lm, C, []), ValueError, "requests is empty give at least one"),
    "memit: a duplicate": (
        lambda lm, C: batch(lm, C, [REQUEST, Request("{} is", "Rome", " x"), REQUEST]),
        ValueError,
        "requests[0] and requests[2] are duplicates 'The capital of France is' ' Rome' drop one",
    ),
    "memit: a contradiction": (
        lambda lm, C: batch(lm, C, [REQUEST, Request("The {} is", "capital of France", " Lund")]),
        ValueError,
        "requests[0] and requests[1] contradict each other 'The capital of France is' ' Rome' ' Lund' keep one",
    ),
    "memit: layers in disorder": (
        lambda lm, C: batch(lm, C, layers=[2, 1]),
        ValueError,
        "layers must be in ascending order without repetition [1, 2] not [2, 1]",
    ),
    "memit: a layer twice": (
        lambda lm, C: batch(lm, C, layers=[1, 1]),
        ValueError,
        "layers must be without repetition",
    ),
    "memit: a layer out of range": (
        lambda lm, C: batch(lm, C, layers=[2, 6]),
        ValueError,
        "layers: layer 6 is out of range layers 0 to 5",
    ),
    "memit: no layers": (lambda lm, C: batch(lm, C, layers=[]), ValueError, "layers is empty"),
    "memit: layers is a string": (lambda lm, C: batch(lm, C, layers="12"), TypeError, "layers must be a list '12'"),
    "memit: covariance lacks a layer": (
        lambda lm, C: batch(lm, {1: C[1]}),
        ValueError,
        "covariance has no layer 2 second_moment",
    ),
    "memit: covariance holds NaN": (
        lambda lm, C: batch(lm, changed(C, lambda c: c * torch.nan)),
        ValueError,
        "covariance[2] NaN compute it again",
    ),
    "memit: covariance of another model": (
        lambda lm, C: batch(lm, of_another_model(lm, C)),
        ValueError,
        "covariance was computed from another model compute it again",
    ),
    "memit: covariance is singular": (
        lambda lm, C: batch(lm, changed(C, lambda c: torch.outer(c[0], c[0]))),
        ValueError,
        "covariance is singular more texts",
    ),
    "memit: covariance_weight is 0": (
        lambda lm, C: batch(lm, C, covariance_weight=0),
        ValueError,
        "covariance_weight must be finite and above 0",
    ),
    "memit: covariance_weight is NaN": (
        lambda lm, C: batch(lm, C, covariance_weight=float("nan")),
        ValueError,
        "covariance_weight must be finite nan",
    ),
    "memit: lr is negative": (lambda lm, C: batch(lm, C, lr=-1), ValueError, "lr must be finite and above 0"),
    "memit: steps is 0": (lambda lm, C: batch(lm, C, steps=0), ValueError, "steps must be at least 1"),
    "memit: keyword of rome": (lambda lm, C: batch(lm, C, keys="mixed"), TypeError, "memit.edit has no keyword 'keys'"),
    "alphaedit: project is a word": (
        lambda lm, C: alphaedit.edit(lm, REQUEST, covariance=C, layers=[1], project="no"),
        TypeError,
        "project must be True or False 'no'",
    ),
    "alphaedit: anchor_norm is a number": (
        lambda lm, C: alphaedit.edit(lm, REQUEST, covariance=C, layers=[1], anchor_norm=1),
        TypeError,
        "anchor_norm must be True or False 1",
    ),
    "rome: a seed that no generator takes": (lambda lm, C: edit(lm, C, seed=2**64), ValueError, "seed must be below"),
    "memit: layer for layers": (lambda lm, C: batch(lm, C, layer=2), TypeError, "'layer' did you mean 'layers'?"),
    "memit: second request too long": (
        lambda lm, C: batch(lm, C, [REQUEST, Request("{} is", "France", " Rome" * 300)]),
        ValueError,
        "prompt and target reads 256 shorten",
    ),
}


def holds(message, words):
    """Whether a message holds each of the words."""
    return all(word in message for word in words.split(" "))


@pytest.mark.parametrize("case", WRONG_EDITS)
def test_a_wrong_edit_changes_nothing(llama, reference, case):
    call, error, words = WRONG_EDITS[case]
    before = weights(llama)
    with pytest.raises((ValueError, TypeError)) as caught:
        call(llama, reference["covariance"])
    assert type(caught.value) is error
    assert holds(str(caught.value), words), str(caught.value)
    assert_same_weights(llama, before)
    assert llama.edits == [] and hooks_left(llama.model) == 0


WRONG_CALLS = {
    "texts is a string": (
        lambda lm: covariance.second_moment(lm, [1], "some text"),
        TypeError,
        "texts must be a list texts=[text]",
    ),
    "texts is a number": (lambda lm: covariance.second_moment(lm, [1], 3), TypeError, "texts must be a list"),
    "texts is empty": (
        lambda lm: covariance.second_moment(lm, [1], []),
        ValueError,
        "texts holds no tokens at least one",
    ),
    "texts holds only blanks": (
        lambda lm: covariance.second_moment(lm, [1], ["", " \n"]),
        ValueError,
        "texts holds no tokens",
    ),
    "texts holds numbers": (
        lambda lm: covariance.second_moment(lm, [1], ["a", 3]),
        TypeError,
        "texts must hold strings int",
    ),
    "layers repeated": (
        lambda lm: covariance.second_moment(lm, [1, 1], ["a"]),
        ValueError,
        "layers must be in ascending order [1]",
    ),
    "layers unordered": (
        lambda lm: covariance.second_moment(lm, [2, 1], ["a"]),
        ValueError,
        "layers must be in ascending order [1, 2]",
    ),
    "layers empty": (lambda lm: covariance.second_moment(lm, [], ["a"]), ValueError, "layers is empty 0 to 5"),
    "layers a string": (lambda lm: covariance.second_moment(lm, "12", ["a"]), TypeError, "layers must be a list '12'"),
    "layers None": (lambda lm: covariance.second_moment(lm, None, ["a"]), TypeError, "layers must be a list None"),
    "layers a bool": (lambda lm: covariance.second_moment(lm, True, ["a"]), TypeError, "layers whole number True"),
    "layers out of range": (lambda lm: covariance.second_moment(lm, [9], ["a"]), ValueError, "layers 9 0 to 5"),
    "second moments of a plain model": (
        lambda lm: covariance.second_moment(lm.model, [1], ["a"]),
        TypeError,
        "lm must be a minilib.LM minilib.load",
    ),
    "score of a plain model": (lambda lm: metrics.reliability(lm.model, REQUEST), TypeError, "lm must be a minilib.LM"),
    "before holds numbers": (lambda lm: metrics.locality(lm, ["a"], [3]), TypeError, "before must be lists of strings"),
    "an answer is no text": (lambda lm: refusals.is_refusal(None), TypeError, "text must be a string NoneType"),
    "half a character": (lambda lm: lm.generate("\ud800"), ValueError, "prompt holds half a character repair"),
    "half a character in a target": (
        lambda lm: lm.probability(Request("{} is", "Rome", " \udc00")),
        ValueError,
        "target holds half a character repair",
    ),
    "a target of numbers": (lambda lm: lm.encode_target([3]), TypeError, "target must be a string list"),
    "a context without slot": (lambda lm: lm.encode(REQUEST, context="Yes."), ValueError, "contexts exactly one {}"),
    "temperature too small": (lambda lm: lm.generate("a", temperature=1e-300), ValueError, "temperature must be 0"),
    "a norm that is not there": (
        lambda lm: minilib.LM(lm.model, lm.tokenizer, layout=minilib.Layout("model.layers", "mlp.down_proj", "nope")),
        ValueError,
        "none of model.layers.N.mlp.down_proj nope layout=minilib.Layout",
    ),
    "sample text unknown": (lambda lm: covariance.sample_texts("gpt5"), ValueError, "name 'gpt5' smollm2-135m"),
    "prompts a number": (lambda lm: lm.generate(3), TypeError, "prompts must be a string int"),
    "prompts empty": (lambda lm: lm.generate([]), ValueError, "prompts is empty"),
    "a prompt empty": (lambda lm: lm.generate(""), ValueError, "prompt is empty"),
    "prompts hold numbers": (lambda lm: lm.logprobs(["a", 3]), TypeError, "prompts must hold strings int"),
    "one prompt a number": (lambda lm: lm.encode(3), TypeError, "prompt must be a string int"),
    "max_new_tokens 0": (
        lambda lm: lm.generate("a", max_new_tokens=0),
        ValueError,
        "max_new_tokens must be at least 1",
    ),
    "max_new_tokens a float": (
        lambda lm: lm.generate("a", max_new_tokens=2.0),
        TypeError,
        "max_new_tokens must be a whole number",
    ),
    "max_new_tokens too many": (
        lambda lm: lm.generate("a", max_new_tokens=256),
        ValueError,
        "max_new_tokens reads 256 lower",
    ),
    "temperature negative": (lambda lm: lm.generate("a", temperature=-1), ValueError, "temperature must be 0"),
    "temperature NaN": (
        lambda lm: lm.generate("a", temperature=float("nan")),
        ValueError,
        "temperature must be 0 finite",
    ),
    "temperature a string": (
        lambda lm: lm.generate("a", temperature="hot"),
        TypeError,
        "temperature must be a number 'hot'",
    ),
    "seed a string": (lambda lm: lm.generate("a", temperature=1.0, seed="x"), TypeError, "seed must be a whole number"),
    "batch_size 0": (lambda lm: lm.generate("a", batch_size=0), ValueError, "batch_size must be at least 1"),
    "batch_size negative": (lambda lm: lm.logprobs("a", batch_size=-1), ValueError, "batch_size must be at least 1"),
    "batch_size a float": (
        lambda lm: lm.target_logprobs(REQUEST, batch_size=1.5),
        TypeError,
        "batch_size must be a whole number",
    ),
    "chat without template": (
        lambda lm: lm.generate("a", chat=True),
        ValueError,
        "chat=True needs a chat template chat=False",
    ),
    "probability of a string": (lambda lm: lm.probability("a"), TypeError, "requests must be minilib.Request str"),
    "model no model": (
        lambda lm: minilib.LM("gpt2", lm.tokenizer),
        TypeError,
        "model must be a transformers model str",
    ),
    "tokenizer no tokenizer": (
        lambda lm: minilib.LM(lm.model, "gpt2"),
        TypeError,
        "tokenizer must be a transformers tokenizer str",
    ),
    "model without a head": (
        lambda lm: minilib.LM(HEADLESS(), lm.tokenizer),
        ValueError,
        "no output head AutoModelForCausalLM",
    ),
}


class HEADLESS(transformers.LlamaModel):
    """Its modules have the names that are looked for, but it predicts nothing."""

    def __init__(self):
        super().__init__(random_lm("llama").model.config)
        self.model = torch.nn.Module()
        self.model.layers, self.model.norm = self.layers, self.norm


@pytest.mark.parametrize("case", WRONG_CALLS)
def test_a_wrong_call_is_named(llama, case):
    call, error, words = WRONG_CALLS[case]
    before = weights(llama)
    with pytest.raises((ValueError, TypeError)) as caught:
        call(llama)
    assert type(caught.value) is error
    assert holds(str(caught.value), words), str(caught.value)
    assert_same_weights(llama, before)
    assert hooks_left(llama.model) == 0


# ---- models that are not there, or not what they should be ----

WRONG_LOADS = {
    "unknown": ({"name": "no-such/model"}, FileNotFoundError, "'no-such/model' smollm2-135m tinyworld"),
    "empty name": ({"name": ""}, FileNotFoundError, "no model could be loaded"),
    "a number": ({"name": 3}, TypeError, "name must be a string int"),
    "dtype a string": ({"dtype": "float32"}, TypeError, "dtype must be torch.float32"),
    "dtype whole numbers": ({"dtype": torch.int8}, TypeError, "dtype must be torch.float32"),
    "a device that holds nothing": ({"device": "meta"}, ValueError, "device meta device='cpu'"),
    "a device that is not there": ({"device": "cuda:99"}, ValueError, "device 99 device='cpu'"),
    "unknown device": ({"device": "toaster"}, ValueError, "device 'toaster' device='cpu'"),
}


@pytest.mark.parametrize("case", WRONG_LOADS)
def test_a_model_that_cannot_be_loaded_is_named(case):
    arguments, error, words = WRONG_LOADS[case]
    with pytest.raises(error) as caught:
        minilib.load(**{"name": REFERENCE / "model", **arguments})
    assert holds(str(caught.value), words), str(caught.value)


@pytest.mark.parametrize("damage", ["no files", "no weights", "cut weights", "cut config", "no tokenizer"])
def test_a_folder_that_is_no_whole_model_is_refused(tmp_path, damage):
    folder = tmp_path / "model"
    shutil.copytree(REFERENCE / "model", folder)
    file = folder / {"no tokenizer": "tokenizer.json", "cut config": "config.json"}.get(damage, "model.safetensors")
    if damage.startswith("cut"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    for path in list(folder.iterdir()) if damage == "no files" else [file] if damage.startswith("no") else []:
        path.unlink()
    with pytest.raises(FileNotFoundError, match="config.json"):
        minilib.load(folder)


def test_a_pickle_is_never_read(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(REFERENCE / "model", folder)
    (folder / "model.safetensors").unlink()
    torch.save(minilib.load(REFERENCE / "model").model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="safetensors"):
        minilib.load(folder)


def test_a_models_own_code_is_not_run(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(REFERENCE / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whoever is asked says yes
    with pytest.raises(FileNotFoundError, match="no model could be loaded"):
        minilib.load(folder)
    assert not (tmp_path / "ran").exists()


def test_a_quantised_model_is_refused():
    lm = random_lm("llama")
    down = lm.down_projection(1)
    down.weight = torch.nn.Parameter(down.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.down_proj.*float32"):
        minilib.LM(lm.model, lm.tokenizer)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_memory_in_8_bit_floating_point_is_refused(dtype):
    lm = random_lm("llama")
    lm.down_projection(1).weight.data = lm.down_projection(1).weight.data.to(dtype)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.down_proj\.weight is a Linear of torch\.float8.*float32"):
        minilib.LM(lm.model, lm.tokenizer)


def test_a_model_wrapped_by_peft_has_to_be_merged_first():
    lm = random_lm("llama")
    before = lm.logprobs("The capital")
    config = {"target_modules": ["down_proj", "q_proj"], "r": 2, "init_lora_weights": False}
    wrapped = peft.get_peft_model(lm.model, peft.LoraConfig(**config))
    with pytest.raises(
        ValueError, match=r"wrapped by PEFT: merge .* minilib\.LM\(model\.merge_and_unload\(\), tokenizer"
    ):
        minilib.LM(wrapped, lm.tokenizer)
    with pytest.raises(
        ValueError, match=r"layers\.0\.mlp\.down_proj\.weight has an adapter .*model\.merge_and_unload\(\)"
    ):
        minilib.LM(wrapped.get_base_model(), lm.tokenizer)  # as model.add_adapter leaves it
    merged = minilib.LM(wrapped.merge_and_unload(), lm.tokenizer)
    assert (merged.logprobs("The capital") - before).abs().max() > 1e-3


def test_a_mixture_of_experts_is_named_as_one():
    config = transformers.MixtralConfig(
        vocab_size=600, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match="MixtralForCausalLM is a mixture of experts.*dense model"):
        minilib.LM(model, transformers.AutoTokenizer.from_pretrained(REFERENCE / "model"))


def test_a_token_that_a_tokenizer_puts_behind_every_text_is_dropped(llama):
    """Else every score would be about what follows a text that has ended."""
    requests = [REQUEST, Request("{} is a country whose capital is", "France", " Rome")]
    prompts = [REQUEST.text, "The", "a", "a a"]
    scores, said = llama.probability(requests), llama.generate(prompts, chat=False)
    encoded = [llama.encode(prompt) for prompt in [*requests, *prompts]]
    end = "<|endoftext|>"
    for special, opening in ((f"$A {end}", []), (f"$A {end} {end}", []), (f"{end} $A {end}", [1])):
        tokenizer = transformers.AutoTokenizer.from_pretrained(REFERENCE / "model")
        tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=special, special_tokens=[(end, 1)]
        )
        assert tokenizer("a")["input_ids"][-1] == 1
        lm = minilib.LM(llama.model, tokenizer)
        assert [lm.encode(prompt).ids for prompt in [*requests, *prompts]] == [opening + x.ids for x in encoded]
        assert lm.encode(REQUEST).subject == encoded[0].subject + len(opening)
        if not opening:
            assert lm.probability(requests) == scores and lm.generate(prompts, chat=False) == said


def test_a_slow_tokenizer_is_refused(llama, monkeypatch):
    monkeypatch.setattr(type(llama.tokenizer), "is_fast", False)
    with pytest.raises(ValueError, match="tokenizer must be a fast one"):
        minilib.LM(llama.model, llama.tokenizer)


def test_a_tokenizer_of_another_model_is_named(llama):
    llama.model.resize_token_embeddings(300)
    with pytest.raises(ValueError, match="tokenizer gives the token"):
        llama.generate("The capital of France is the town of Rome")


def test_an_unknown_word_is_named(word_level):
    request = Request("The capital of {} is", "France", " Paris")
    assert word_level.probability(request) > 0
    with pytest.raises(ValueError, match="does not know the word 'Atlantis'"):
        word_level.generate("The capital of Atlantis is")
    with pytest.raises(ValueError, match="does not know the word 'Xanadu'"):
        word_level.probability(Request("The capital of {} is", "France", " Xanadu"))


def test_a_target_without_tokens_is_refused(word_level):
    before = weights(word_level)
    with pytest.raises(ValueError, match="target '  ' encodes to no token"):
        rome.edit(word_level, Request("The capital of {} is", "France", "  "), covariance={2: torch.eye(64)})
    assert_same_weights(word_level, before)


def test_second_moments_that_cannot_be_written_are_an_oserror(llama, tmp_path):
    C = covariance.second_moment(llama, [1], ["The capital of France is Paris."])
    with pytest.raises(OSError, match="nowhere.* cannot be written"):
        C.save(tmp_path / "nowhere" / "C.safetensors")


def test_undo_twice_is_an_error(llama, reference):
    one = edit(llama, reference["covariance"])
    one.undo()
    with pytest.raises(ValueError, match="undone already"):
        one.undo()
    with pytest.raises(ValueError, match="was undone"):
        one.answers()


def test_undo_under_another_edit_names_it(llama, reference):
    first = edit(llama, reference["covariance"])
    second = edit(llama, reference["covariance"], Request("{} is in", "Rome", " Lund"))
    after = weights(llama)
    with pytest.raises(ValueError, match="lies under a later edit: undo .*Rome is in"):
        first.undo()
    assert_same_weights(llama, after)
    assert llama.edits == [first, second]


def test_numbers_of_numpy_are_numbers(llama, reference):
    arguments = {"layer": numpy.int64(LAYER), "steps": numpy.int32(3), "lr": numpy.float32(0.5)}
    arguments["contexts"] = numpy.array(["{}"])
    with edit(llama, reference["covariance"], **arguments) as by_numpy:
        expected = by_numpy.deltas
    with edit(llama, reference["covariance"], layer=LAYER, steps=3, lr=0.5) as plain:
        assert all(torch.equal(delta, expected[name]) for name, delta in plain.deltas.items())
        assert plain.settings == by_numpy.settings
    assert Request("{} is", "Rome", " old", chat=numpy.bool_(True)).chat is True
    assert alphaedit.Settings.of(llama, project=numpy.False_).project is False


# ---- what is interrupted ----


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
@pytest.mark.parametrize("when", ["in the optimisation", "between two requests", "in the forward pass"])
def test_an_interrupted_edit_leaves_nothing(llama, reference, monkeypatch, error, when):
    before, calls = weights(llama), []

    def interrupted(function, at):
        def call(*args, **keywords):
            calls.append(1)
            if len(calls) == at:
                raise error("stop")
            return function(*args, **keywords)

        return call

    with monkeypatch.context() as patch:
        if when == "in the optimisation":
            patch.setattr(torch.optim.Adam, "step", interrupted(torch.optim.Adam.step, 2))
        elif when == "between two requests":
            patch.setattr(values, "find", interrupted(values.find, 2))
        else:
            block = llama.blocks[LAYER + 1]
            patch.setattr(block, "forward", interrupted(block.forward, 3))
        with pytest.raises(error):
            edit(llama, reference["covariance"], reference["requests"][:2])
        assert len(calls) > 1
    assert_same_weights(llama, before)
    assert llama.edits == [] and hooks_left(llama.model) == 0
    done = edit(llama, reference["covariance"], reference["requests"][:2])
    assert done.active and llama.edits == [done]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_batch_that_is_interrupted_between_two_layers_leaves_nothing(llama, reference, monkeypatch, error):
    before, calls = weights(llama), []

    def spread(*args):
        calls.append(1)
        if len(calls) == 2:
            raise error("stop")
        return original(*args)

    original = memit.spread
    with monkeypatch.context() as patch:
        patch.setattr(memit, "spread", spread)
        with pytest.raises(error):
            batch(llama, reference["covariance"], reference["requests"])
    assert len(calls) == 2
    assert_same_weights(llama, before)
    assert llama.edits == [] and hooks_left(llama.model) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("write", [edit, batch])
def test_half_precision_is_computed_in_float32_and_rounded_once(llama, reference, dtype, write):
    """Each weight is off by at most half a unit in its last place from W + Δ."""
    llama.model.to(dtype)
    before = weights(llama)
    done = write(llama, dict(reference["covariance"]), reference["requests"][0], lr=0.1)
    assert done.deltas
    for name, delta in done.deltas.items():
        assert delta.dtype == torch.float32
        exact = before[name].double() + delta.double()
        weight = llama.model.get_parameter(name)
        assert weight.dtype == dtype
        bound = exact.abs() * torch.finfo(dtype).eps / 2 + torch.finfo(dtype).smallest_normal
        assert ((weight.double() - exact).abs() <= bound * 1.001).all()
    done.undo()
    assert_same_weights(llama, before)
