"""What a model says next: generation by transformers, with its own settings alone, and probabilities of answers.

``AnswerMixin`` is the part of ``LM`` that runs the model on text.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor

from .requests import Request, as_requests, whole
from .tokens import Encoded, TokenMixin


class Lock:
    """A lock that a thread may take again, and that goes to who waits before the last owner has it once more.

    A copy or a pickle of what holds it has a new one.
    """

    def __init__(self) -> None:
        self._first, self._lock = threading.Lock(), threading.Lock()  # who waits next, and who has it
        self._owner, self._depth = 0, 0

    def __enter__(self) -> None:
        if self._owner != threading.get_ident():
            with self._first:
                self._lock.acquire()
            self._owner = threading.get_ident()
        self._depth += 1

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = 0
            self._lock.release()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return Lock, ()


class AnswerMixin(TokenMixin):
    """What ``LM`` can be asked."""

    @property
    def device(self) -> torch.device:
        """Where the model's inputs go."""
        place: torch.device = self.model.get_input_embeddings().weight.device
        return place

    @property
    def edits(self) -> list[Any]:
        """The edits in force, the latest last. The list is the model's: every LM around a model has the same one."""
        edits: list[Any] = self.model.__dict__.setdefault("minilib_edits", [])
        return edits

    @property
    def lock(self) -> Lock:
        """The model's lock: it is one thread's at a time, since asking and editing both change it for a while.

        Each call takes it; ``with lm.lock:`` keeps other threads out between several calls. So do ``lm.unedited`` and
        ``Edit.at_strength``: threads that ask in such a block, and that it waits for, would wait for ever.
        """
        lock: Lock = self.model.__dict__.setdefault("minilib_lock", Lock())
        return lock

    @property
    def guards(self) -> list[Any]:
        """The guards of the edits in force (GRACE, WISE), the earliest first."""
        return [edit.guard for edit in self.edits if edit.guard is not None]

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
            For sampling; the global random state is left as it was. What is drawn depends on which prompts run
            together: the same seed gives the same answers to the same list in the same batches.
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
        single, _, rows = self.as_prompts(prompts, self.has_chat if chat is None else chat)
        longest = max(map(len, rows))
        if longest + max_new_tokens > self.context_length:
            raise ValueError(
                f"prompt and max_new_tokens make {longest} + {max_new_tokens} tokens and {self.name} reads "
                f"{self.context_length}: shorten the prompt or lower max_new_tokens"
            )
        stops, pad = self.stops(), self.tokenizer.pad_token_id
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature:
            sampling = {"do_sample": True, "temperature": float(temperature), "top_k": top_k, "top_p": 1.0}
        config = transformers.GenerationConfig(
            max_new_tokens=max_new_tokens,
            eos_token_id=stops or None,
            pad_token_id=(stops or [0])[0] if pad is None else pad,
            **sampling,
        )
        texts: list[str] = []
        with torch.no_grad(), self.evaluating(), _seeded(seed, self.device), _only(self.model, config):
            for start in range(0, len(rows), batch_size):
                chunk = rows[start : start + batch_size]
                batch = self.batch(chunk, side="left")
                batch.pop("position_ids")  # generate makes its own
                output = self.model.generate(**batch, generation_config=config)
                width = batch["input_ids"].shape[1]
                for row, ids in zip(chunk, output, strict=True):
                    new = ids[width:].tolist()
                    end = next((i for i, token in enumerate(new) if token in stops), len(new))
                    texts.append(continuation(self.tokenizer, row, new[:end]))
        return texts[0] if single else texts

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """For the time of the block, no dropout: whatever of the model is in training mode is put back into it."""
        with self.lock:
            training = [module for module in self.model.modules() if module.training]
            try:
                for module in training:
                    module.training = False
                yield
            finally:
                for module in training:
                    module.training = True

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
        _, _, rows = self.as_prompts(prompts, chat)
        batch_size = self.together(batch_size)
        next_tokens = []
        with self.evaluating():
            for start in range(0, len(rows), batch_size):
                chunk = rows[start : start + batch_size]
                logits = self.model(**self.batch(chunk), use_cache=False).logits
                last = torch.tensor([len(row) - 1 for row in chunk])
                next_tokens.append(logits[torch.arange(len(chunk)), last].float().log_softmax(-1))
        return torch.cat(next_tokens)

    @torch.no_grad()
    def target_steps(
        self, encoded: Sequence[Encoded], batch_size: int | None = None
    ) -> Iterator[Float[Tensor, "target vocabulary"]]:
        """For each prompt with its target, the log-probabilities at each step, the target's earlier tokens given."""
        batch_size = self.together(batch_size)
        for start in range(0, len(encoded), batch_size):
            chunk = encoded[start : start + batch_size]
            with self.evaluating(), self.prompts_end([len(x.ids) - 1 for x in chunk]):
                logits = self.model(**self.batch([x.ids + x.target[:-1] for x in chunk]), use_cache=False).logits
            for row, x in zip(logits, chunk, strict=True):
                yield row[len(x.ids) - 1 : len(x.ids) - 1 + len(x.target)].float().log_softmax(-1)

    def target_logprobs(
        self, requests: Request | Sequence[Request] | Sequence[Encoded], batch_size: int | None = None
    ) -> list[Float[Tensor, " target"]]:
        """For each request, the log-probability of each token of its target, the earlier ones given (nats)."""
        ready = isinstance(requests, Sequence) and all(isinstance(x, Encoded) for x in requests)
        encoded: Any = requests if ready else self.encode(as_requests(requests))  # type: ignore[arg-type]
        with self.lock:  # one for all batches
            steps = zip(self.target_steps(encoded, batch_size), encoded, strict=True)
            return [s.gather(1, torch.tensor(x.target, device=s.device).unsqueeze(1)).squeeze(1) for s, x in steps]

    def probability(self, requests: Request | Sequence[Request]) -> Any:
        """The probability that the model says the whole target after the prompt.

        Returns
        -------
        float, or list of float for a list of requests
        """
        said = [math.exp(steps.sum().item()) for steps in self.target_logprobs(requests)]
        return said[0] if isinstance(requests, Request) else said

    @contextmanager
    def prompts_end(self, columns: Sequence[int]) -> Iterator[None]:
        """For the calls in the block, guards know the column of each row's last prompt token: the answer follows."""
        watching = self.guards
        for guard in watching:
            guard.told = list(columns)
        try:
            yield
        finally:
            for guard in watching:
                guard.told = None


@contextmanager
def _only(model: Any, config: transformers.GenerationConfig) -> Iterator[None]:
    """Without the model's own generation settings, which transformers would mix in: greedy is greedy."""
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own


def continuation(tokenizer: Any, prompt: list[int], new: list[int]) -> str:
    """The text that ``new`` adds: decoded with its prompt, since some tokenizers drop a first space."""
    how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before, both = tokenizer.decode(prompt, **how), tokenizer.decode(prompt + new, **how)
    return both[len(before) :] if both.startswith(before) else tokenizer.decode(new, **how)


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Sampling from a seed of its own; the global random state is put back."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
