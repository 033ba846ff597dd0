"""A language model, its tokenizer, and where its MLP memories are.

``LM`` holds two plain transformers objects and knows the few names that differ between architectures:
the list of blocks, the MLP's down-projection in each (the matrix that editing calls the memory W), and the
final norm. ``minilib.load`` makes one from a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from . import architectures
from .answers import AnswerMixin
from .architectures import Layout
from .storage import fingerprint_of, quiet_transformers

POST_NORM = "post_feedforward_layernorm"  # Gemma 2/3 and OLMo 2 normalise what the MLP returns before adding it


class Aside:
    """What marks a model with other weights than its edits tell; it refuses to be copied, and the model with it."""

    def __reduce__(self) -> Any:
        raise ValueError(
            "the model has other weights for the time of this block (lm.unedited, edit.at_strength), and a copy would "
            "keep them: copy it outside, and undo the edits of the copy (edits.undo_all)"
        )


class LM(AnswerMixin):
    """A causal language model with its tokenizer, ready to be edited.

    Where the weights are, and what edits need of them, stands here; ``encode`` and the chat template are in ``tokens``,
    ``generate``, ``batch``, probabilities, and what every LM around a model shares (``edits``, ``guards``, ``lock``) in
    ``answers``.

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
        architectures.check_pair(model, tokenizer)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.opening = opening
        self.layout = architectures.find_layout(model, layout)
        self.blocks = model.get_submodule(self.layout.blocks)
        self.norm = architectures.submodule(model, self.layout.norm)
        architectures.check_passes(model, self.blocks)
        self.closing = architectures.closing_tokens(tokenizer)
        self.head = self.model.get_output_embeddings()
        if self.head is None:
            raise ValueError(f"{type(model).__name__} has no output head: load it by transformers.AutoModelForCausalLM")
        config = self.model.config.get_text_config()
        self.name = name or getattr(config, "_name_or_path", "") or config.model_type
        self.kind = f"{config.model_type}-{len(self.blocks)}x{config.hidden_size}"
        self.context_length: int = getattr(config, "max_position_embeddings", None) or 2**31
        for layer in range(len(self.blocks)):
            architectures.check_memory(self.down_projection(layer), self.weight_name(layer))

    # ---- where things are -------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """Which model this is: a hash of its weights as they are now, edits in force taken away."""
        with self.lock:
            return fingerprint_of(self.model, self.originals())

    def originals(self) -> dict[str, Tensor]:
        """Of each parameter that edits in force have changed, what it was before them."""
        originals: dict[str, Tensor] = {}
        for edit in reversed(self.edits):  # the earliest edit has the last word, and always keeps a copy
            originals |= edit._originals
        return originals

    @property
    def around(self) -> str:
        """What this LM adds to the model's own answers, in words; "" for nothing."""
        return "" if self.opening is None else "a prompt"

    @property
    def n_layers(self) -> int:
        """How many blocks the model has."""
        return len(self.blocks)

    def to(self, device: str | torch.device) -> LM:
        """Move the model to a device, with the guards that are in force; later edits compute there.

        Raises
        ------
        ValueError
            When there is no such device, or accelerate has spread the model over several.
        """
        if getattr(self.model, "hf_device_map", None):
            raise ValueError(f"{self.name} is spread over devices by device_map: load it anew with device={device!r}")
        self.model.to(device_there(device))
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

    def check_layers(self, layers: Any) -> list[int]:
        """A list of layers, in ascending order and without repetition; one number stands for a list of one."""
        if isinstance(layers, (str, bytes)) or not isinstance(layers, (Integral, Iterable)):
            raise TypeError(f"layers must be a list of layer numbers, not {layers!r}")
        layers = [layers] if isinstance(layers, Integral) else list(layers)
        if not layers:
            raise ValueError(f"layers is empty: give at least one of 0 to {self.n_layers - 1}")
        layers = [self.check_layer(layer, "layers: layer") for layer in layers]
        if layers != (ascending := sorted(set(layers))):
            raise ValueError(f"layers must be in ascending order without repetition, such as {ascending}, not {layers}")
        return layers

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as it is now, edits included, as a plain transformers folder; ``minilib.load`` reads it too.

        Raises
        ------
        ValueError
            When a memory beside the weights is in force (GRACE, WISE), or a prompt or a filter around them, which such
            a folder cannot hold.
        OSError
            When the folder cannot be written.
        """
        beside = [edit.method for edit in self.edits if edit.guard is not None]
        if beside:
            raise ValueError(
                f"{self.name} has a memory beside its weights ({', '.join(beside)}), which a folder of transformers "
                "cannot hold: save the edit by edit.save and load it onto the model again"
            )
        if self.around:
            raise ValueError(
                f"{self.name} has {self.around} around its weights, which a folder of transformers cannot hold: save "
                "the model that it was put around, and put it around again after loading"
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with self.lock, quiet_transformers():
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        about = folder / "tokenizer_config.json"  # the class has another name in transformers 5: 4 cannot read it
        about.write_text(about.read_text("utf8").replace("TokenizersBackend", "PreTrainedTokenizerFast"), "utf8")
        for file in folder.glob("*.safetensors"):  # whose writer shuts out others
            file.chmod(about.stat().st_mode)

    # ---- its parts ----------------------------------------------------------------------------------

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

    @contextmanager
    def silenced(self, guards: Sequence[Any] | None = None) -> Iterator[None]:
        """For the time of the block, guards do not answer: all in force, or these."""
        with self.lock:
            watching = self.guards if guards is None else guards
            before = [guard.silent for guard in watching]
            for guard in watching:
                guard.silent = True
            try:
                yield
            finally:
                for guard, was in zip(watching, before, strict=True):
                    guard.silent = was

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Marks that the weights are not as ``edits`` tells: in the block nothing is edited, loaded or undone."""
        about = self.model.__dict__
        before = about.get("minilib_aside")
        about["minilib_aside"] = Aside()
        try:
            yield
        finally:
            about["minilib_aside"] = before

    def check_in_place(self) -> None:
        """Refuse to edit or undo where ``unedited`` or ``Edit.at_strength`` has put other weights for a while."""
        if self.model.__dict__.get("minilib_aside"):
            raise ValueError(
                f"{self.name} has other weights for the time of this block (lm.unedited, edit.at_strength): leave the "
                "block before you edit, load or undo"
            )

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """For the time of the block, the model as it was before every edit in force; nothing can be edited in it."""
        with self.lock:
            originals = self.originals()
            parameters = {name: self.model.get_parameter(name) for name in originals}
            edited = {name: parameter.detach().clone() for name, parameter in parameters.items()}
            try:
                for name, parameter in parameters.items():
                    parameter.data.copy_(originals[name])
                with self.silenced(), self.aside():
                    yield
            finally:
                for name, parameter in parameters.items():
                    parameter.data.copy_(edited[name])

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.model.parameters()) / 1e6
        return f"LM({self.name!r}, {self.n_layers} layers, {size:.1f}M parameters, edits in force: {len(self.edits)})"


def device_there(device: Any) -> torch.device:
    """A device that is there, tried."""
    try:
        there = torch.device(device)
        torch.zeros(1, device=there).cpu()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {device!r} cannot be used here ({error}): use device='cpu'") from error
    return there


def present(weight: Tensor, name: str) -> Tensor:
    """A weight that is in memory; an error where accelerate has put it elsewhere until its block runs."""
    if weight.is_meta:
        raise ValueError(
            f"cannot edit or read {name}, which accelerate has moved off its device: load the model with a "
            "device_map that keeps the blocks to be edited on a device"
        )
    return weight


def check_lm(lm: Any) -> None:
    """Refuse what is no LM, such as a plain transformers model."""
    if not isinstance(lm, LM):
        raise TypeError(f"lm must be a minilib.LM (see minilib.load), not {type(lm).__name__}")
