"""Second moments of keys: C = mean of k kᵀ over text.

C says in which directions of key space a layer is used and how much. ROME and MEMIT divide by it so that
a new key disturbs the old ones least; AlphaEdit reads from it which directions are free.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from filelock import FileLock
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from . import hooks
from .forward import double
from .model import LM, check_lm
from .storage import cache_folder, fingerprint_of, made, whole

TEXTS = Path(__file__).parent / "data" / "text"
WINDOW = 512  # a longer text is read in windows of so many tokens
BAR_AFTER = 2  # seconds: what is done sooner needs no bar
BATCH_TOKENS = 2048  # tokens run together: few enough that what a block computes stays in the processor's cache


class SecondMoments(dict[int, Tensor]):
    """{layer: C}, each C (d_k, d_k) in float32, with what it was computed from.

    Attributes
    ----------
    fingerprint : str
        Of the model whose keys these are; another model refuses them.
    tokens : int
        How many tokens were averaged.
    text : str
        A hash of the texts.
    """

    def __init__(self, moments: Mapping[int, Tensor], fingerprint: str, tokens: int, text: str) -> None:
        super().__init__(moments)
        self.fingerprint, self.tokens, self.text = fingerprint, tokens, text
        self._spectra: dict[int, tuple[tuple[int, int], Tensor, Tensor]] = {}  # what ``spectrum`` found, and of which C

    def save(self, file: str | Path) -> None:
        """Write to one safetensors file."""
        about = {"fingerprint": self.fingerprint, "tokens": str(self.tokens), "text": self.text}
        try:
            with whole(Path(file)) as scratch:
                save_file({str(layer): moment.contiguous() for layer, moment in self.items()}, scratch, about)
        except SafetensorError as error:
            raise OSError(f"file {str(file)!r} cannot be written: {error}") from error


def load(file: str | Path) -> SecondMoments:
    """Read what ``SecondMoments.save`` wrote.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When the file is damaged or holds something else.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"file {str(file)!r} does not exist: save second moments there first")
    try:
        with safe_open(str(file), "pt") as tensors:
            about = tensors.metadata() or {}
            moments = {int(name): tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - no mapping
        return SecondMoments(dict(sorted(moments.items())), about["fingerprint"], int(about["tokens"]), about["text"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"file {str(file)!r} holds no second moments (damaged, or another kind): {error}") from error


def second_moment(
    lm: LM,
    layers: Sequence[int] | int,
    texts: Iterable[str] | None = None,
    progress: bool = False,
    together: bool = True,
) -> SecondMoments:
    """C = mean of k kᵀ over the tokens of a text, for several layers in one pass.

    Without ``texts``, of the model's sample text: computed once (20 s a layer's depth on SmolLM2 and two cores, with a
    bar), and from then on read from the user's cache. With ``texts`` it is computed each time.

    Parameters
    ----------
    lm : LM
    layers : list of int, or int
        Blocks whose MLP keys are read. The pass stops at the last one.
    texts : list of str, optional
        By default the sample text that comes with the library for this model (SmolLM2's for any other), read by the
        model without the edits in force.
    progress : bool, default False
        Show a progress bar, once it has taken two seconds.
    together : bool, default True
        Where ``torch.distributed`` is initialised, divide the text among the processes; all return the same.

    Returns
    -------
    SecondMoments
        {layer: (d_k, d_k) float32}. Products are summed in float32 within a batch of two thousand tokens
        and in float64 across batches, so the error does not grow with the text.

    Raises
    ------
    TypeError, ValueError
        When ``texts`` is one bare string, empty, or holds no tokens, a layer does not exist, or the processes
        were not all given the same model, layers and texts.

    Examples
    --------
    A script for ``torchrun --nproc-per-node 2 script.py``, with ``lm`` loaded as everywhere::

        torch.distributed.init_process_group("gloo")
        C = covariance.second_moment(lm, [4, 5, 6, 7, 8], texts)
        if torch.distributed.get_rank() == 0:
            C.save("C.safetensors")
    """
    check_lm(lm)
    layers = lm.check_layers(layers)
    if texts is None:
        return _kept(lm, layers)
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        raise TypeError("texts must be a list of strings, not one bare string: write texts=[text]")
    texts = list(texts)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"texts must hold strings, not {type(text).__name__}: {text!r}")
    return measure(lm, layers, texts, progress, together)


@torch.no_grad()
def measure(lm: LM, layers: list[int], texts: list[str], progress: bool, together: bool) -> SecondMoments:
    """The sum itself: keys of all texts, batch by batch; see ``second_moment``."""
    window = min(WINDOW, lm.context_length - 1)
    windows: list[list[int]] = []
    for text in filter(str.strip, texts):
        ids = lm.encode(text, any_length=True).ids
        windows += [ids[i : i + window] for i in range(0, len(ids), window)]
    if not windows:
        raise ValueError("texts holds no tokens: give at least one text that is not empty")
    windows.sort(key=len)  # little padding in a batch
    n = sum(map(len, windows))
    rank, processes = _place(lm, layers, texts) if together else (0, 1)
    mine = windows[rank::processes]
    sums = [double(torch.zeros(W.shape[1], W.shape[1], device=W.device)) for W in map(lm.memory, layers)]
    modules = {layer: lm.down_projection(layer) for layer in layers}
    quiet: dict[str, Any] = {} if progress else {"disable": True}  # left out, TQDM_DISABLE in the environment decides
    length = sum(map(len, mine))
    bar = tqdm(total=length, unit="token", desc="second moments", delay=BAR_AFTER, leave=False, **quiet)
    with bar, lm.evaluating():
        for rows in _batches(mine):
            batch = lm.batch(rows)
            with hooks.read(modules, at="input", stop=True) as keys:
                lm.model(**batch, use_cache=False)
            real = batch["attention_mask"].bool()
            for total, layer in zip(sums, layers, strict=True):
                k = keys[layer]
                k = k.reshape(*real.shape, -1)[real.to(k.device)].float()  # (tokens, d_k): padding never counts
                total += (k.T @ k).to(total.device)
            bar.update(sum(map(len, rows)))
    if processes > 1:
        for total in sums:
            distributed.all_reduce(total)
    moments = {layer: (total / n).float() for layer, total in zip(layers, sums, strict=True)}
    return SecondMoments(moments, lm.fingerprint, n, _digest(texts))


def sample_texts(name: str = "smollm2-135m") -> list[str]:
    """The text that comes with the library: sampled from the model itself, by ``benchmarks/sample_text.py``."""
    file = TEXTS / f"{name}.jsonl.gz"
    if not file.is_file():
        known = ", ".join(sorted(f.name.removesuffix(".jsonl.gz") for f in TEXTS.glob("*.jsonl.gz")))
        raise ValueError(f"name {name!r}: no sample text comes with the library for it, only for {known}")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def of_model(lm: LM) -> list[str]:
    """SmolLM2's sample text, or tinyworld's for a model of no other words."""
    for name in ("smollm2-135m", "tinyworld"):
        texts = sample_texts(name)
        try:
            lm.encode(texts[0], any_length=True)
        except ValueError:  # it does not know all the words
            continue
        return texts
    return sample_texts()


def given_or_cached(
    lm: LM, covariance: Mapping[int, Tensor] | None, layers: Sequence[int]
) -> Mapping[int, Float[Tensor, "d_k d_k"]]:
    """What a method was given as ``covariance``, checked; else C of the unedited model, computed once and kept."""
    return _kept(lm, list(layers)) if covariance is None else checked(lm, covariance, layers)


def checked(lm: LM, covariance: Mapping[int, Tensor], layers: Sequence[int]) -> Mapping[int, Float[Tensor, "d_k d_k"]]:
    """Second moments from elsewhere, where the layers' weights are, once they are found to fit.

    Raises
    ------
    TypeError, ValueError
        When ``covariance`` is no dict, lacks a layer, has the wrong shape, holds NaN or only zeros, or
        belongs to another model. A plain dict of tensors is taken on trust.
    """
    if not isinstance(covariance, Mapping):
        raise TypeError(
            f"covariance must be a dict {{layer: tensor}}, not {type(covariance).__name__}; "
            "minilib.covariance.second_moment(lm, layers) makes one"
        )
    if isinstance(covariance, SecondMoments) and covariance.fingerprint != (now := lm.fingerprint):
        raise ValueError(
            f"covariance was computed from another model, or before its weights were changed (fingerprint "
            f"{covariance.fingerprint}, {lm.name} has {now}): compute it again by "
            "minilib.covariance.second_moment(lm, layers)"
        )
    fitting = {}
    for layer in layers:
        if layer not in covariance:
            raise ValueError(
                f"covariance has no layer {layer}, only {list(covariance)}: compute it by "
                f"minilib.covariance.second_moment(lm, {list(layers)})"
            )
        C, d_k = covariance[layer], lm.memory(layer).shape[1]
        if not isinstance(C, Tensor) or not C.is_floating_point():
            kind = C.dtype if isinstance(C, Tensor) else type(C).__name__
            raise TypeError(f"covariance[{layer}] must be a tensor of floating-point numbers, not {kind}")
        if C.shape != (d_k, d_k):
            wanted = f"({d_k}, {d_k}), the keys of {lm.name}"
            raise ValueError(f"covariance[{layer}] must have shape {wanted}, not {tuple(C.shape)}")
        if not torch.isfinite(C).all():
            raise ValueError(f"covariance[{layer}] holds NaN or infinite values: compute it again from clean text")
        if not C.any():
            raise ValueError(f"covariance[{layer}] is zero everywhere: compute it from text that the model reads")
        if not torch.allclose(C, C.T, rtol=1e-3, atol=1e-3 * C.abs().max().item()):
            raise ValueError(f"covariance[{layer}] is not symmetric, as a mean of k kᵀ is: pass C itself")
        fitting[layer] = C.detach().to(lm.memory(layer).device)
    if isinstance(covariance, SecondMoments):
        taken = SecondMoments(fitting, covariance.fingerprint, covariance.tokens, covariance.text)
        taken._spectra = covariance._spectra  # shared: what is found now serves the next edit
        return taken
    return fitting


def spectrum(covariance: Mapping[int, Tensor], layer: int) -> tuple[Float[Tensor, " d_k"], Float[Tensor, "d_k d_k"]]:
    """The eigenvalues of one layer's C, ascending, and the eigenvectors in the columns (float32).

    ``SecondMoments`` keep them, until C is another; from a plain dict they are computed each time.
    """
    C = covariance[layer]
    kept = covariance._spectra if isinstance(covariance, SecondMoments) else {}
    which = C.data_ptr(), C._version
    if layer not in kept or kept[layer][0] != which:
        kept[layer] = which, *torch.linalg.eigh(C.float())
    return kept[layer][1:]


def solve(C: Float[Tensor, "d_k d_k"], k: Float[Tensor, " d_k"]) -> Float[Tensor, " d_k"]:
    """C⁻¹ k in float64, by Cholesky since C is symmetric and positive; see ``cholesky`` for the errors."""
    return torch.cholesky_solve(double(k).unsqueeze(1), cholesky(C)).squeeze(1)


def cholesky(C: Float[Tensor, "d_k d_k"]) -> Float[Tensor, "d_k d_k"]:
    """L in C = L Lᵀ, in float64, for several solutions with one C.

    Raises
    ------
    ValueError
        When C is singular, as it is when computed from fewer tokens than it has dimensions.
    """
    L, info = torch.linalg.cholesky_ex(double(C))
    pivots = L.diagonal() ** 2
    rounding = torch.finfo(torch.promote_types(C.dtype, torch.float32)).eps  # of C as it came: no pivot below is real
    if info.item() or pivots.min() / pivots.max() < rounding:
        raise ValueError(
            f"covariance is singular: it has {C.shape[0]} dimensions, so more than {C.shape[0]} tokens of varied text "
            "are needed; give more texts, or add a small multiple of the identity"
        )
    return L


def _kept(lm: LM, layers: list[int]) -> SecondMoments:
    """Second moments from the sample text, kept in the cache under the model's fingerprint, a file a layer.

    They are those of the model without the edits in force: what is kept must not depend on when it was asked for.
    """
    texts = of_model(lm)
    folder, model = made(cache_folder() / "second_moments"), lm.fingerprint
    files = {layer: folder / f"{model}-{layer}.safetensors" for layer in layers}
    kept: dict[int, SecondMoments] = {}
    with lm.lock, FileLock(folder / f"{model}.lock"):  # in this order, as in an edit, which has the first already
        for layer, file in files.items():
            try:
                C = load(file) if file.is_file() else None
            except (OSError, ValueError):  # damaged
                continue
            # Else there is none yet, or it is of another sample text.
            if C is not None and (C.fingerprint, C.text) == (model, _digest(texts)) and layer in C:
                kept[layer] = C
        missing = [layer for layer in layers if layer not in kept]
        if missing:
            with lm.unedited():
                # Minutes on a slow machine, once. Not together: another process may wait for the lock.
                new = measure(lm, missing, texts, progress=True, together=False)
            for layer in missing:
                kept[layer] = SecondMoments({layer: new[layer]}, new.fingerprint, new.tokens, new.text)
                kept[layer].save(files[layer])
    one, moments = kept[layers[0]], {layer: kept[layer][layer].to(lm.memory(layer).device) for layer in layers}
    return SecondMoments(moments, one.fingerprint, one.tokens, one.text)


def _place(lm: LM, layers: list[int], texts: list[str]) -> tuple[int, int]:
    """This process's rank and how many there are; an error in each of them where they were asked different things."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    asked: list[Any] = [None] * processes
    distributed.all_gather_object(asked, {"lm": fingerprint_of(lm.model), "layers": layers, "texts": _digest(texts)})
    for name, mine in asked[rank].items():
        if any(other[name] != asked[0][name] for other in asked):
            raise ValueError(f"{name} must be the same in all {processes} processes, or together=False; here {mine}")
    return rank, processes


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _batches(rows: Sequence[list[int]]) -> Iterable[list[list[int]]]:
    """Rows, sorted by length, in groups of about ``BATCH_TOKENS`` tokens."""
    group: list[list[int]] = []
    for row in rows:
        if group and len(row) * (len(group) + 1) > BATCH_TOKENS:
            yield group
            group = []
        group.append(row)
    if group:
        yield group
