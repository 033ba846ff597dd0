"""From a text to the tokens that a model reads: plain or as a chat message, with the places of a subject in it.

``TokenMixin`` is the part of ``LM`` that does so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

from jinja2 import TemplateError  # torch brings it

from .requests import SLOT, Request, as_contexts, as_requests

_MARK = "minilib-message"  # stands for a message in a chat template


@dataclass(frozen=True)
class Encoded:
    """A text in tokens, and what is said after it."""

    ids: list[int]
    target: list[int]  # empty for a plain text


@dataclass(frozen=True)
class EncodedRequest(Encoded):
    """A request in tokens: its prompt (``ids``), its target, and the indices of its subject's last and first token."""

    subject: int
    subject_start: int


class TokenMixin:
    """What ``LM`` knows of its tokenizer; see there for the attributes."""

    model: Any
    tokenizer: Any
    name: str
    context_length: int
    closing: int  # so many tokens the tokenizer puts behind every text
    opening: Callable[[str], list[dict[str, str]]] | None

    @overload
    def encode(self, text: str, *, chat: bool = ..., context: str = ..., any_length: bool = ...) -> Encoded: ...
    @overload
    def encode(self, text: Request, *, context: str = ..., ended: bool = ...) -> EncodedRequest: ...
    @overload
    def encode(self, text: Sequence[Request], *, context: str = ..., ended: bool = ...) -> list[EncodedRequest]: ...
    def encode(
        self, text: Any, *, chat: bool = False, context: str = SLOT, ended: bool = False, any_length: bool = False
    ) -> Any:
        """The tokens of a prompt; of a Request also those of its target, and the places of its subject.

        Parameters
        ----------
        text : str, Request or list of Request
            A Request says itself whether it is a chat message.
        chat : bool, default False
            Wrap a string in the chat template, as a user's message with the answer about to begin.
        context : str, default "{}"
            A template put around the user's words, inside the chat template.
        ended : bool, default False
            Let a target in chat be followed by the token by which the chat template ends an answer, if the model
            stops there.
        any_length : bool, default False
            Allow more tokens than the model reads at once, for a text that is cut into windows later.

        Returns
        -------
        Encoded
            ``ids``, and for a Request also ``target``, ``subject`` and ``subject_start``: the indices of the subject's
            last and first token. For a list of Requests a list of them.

        Raises
        ------
        TypeError, ValueError
            When there is no chat template, a word is unknown, the subject cannot be found or the
            prompt is longer than the model's context.
        """
        if isinstance(text, Request):
            return self._encode_request(text, context, ended)
        if isinstance(text, (list, tuple)):
            return [self._encode_request(request, context, ended) for request in as_requests(text)]
        return Encoded(self._encode(text, chat, context, any_length)[0], [])

    def encode_target(self, target: str) -> list[int]:
        """The tokens of a target, encoded on its own and used verbatim.

        Raises
        ------
        ValueError
            When it has no tokens, or a word that the model does not know.
        """
        ids, _ = self._tokenise(target, "target", special=False)
        if not ids:
            raise ValueError(f"target {target!r} encodes to no token of {self.name}: give it visible text")
        return ids

    @property
    def has_chat(self) -> bool:
        """Whether the tokenizer brings a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

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
        text = self._apply_template(self._turns(turns) if isinstance(turns, str) else list(turns))
        first = self.tokenizer.bos_token  # the tokenizer would put it a second time
        doubled = first and self.tokenizer(first)["input_ids"].count(self.tokenizer.bos_token_id) > 1
        return (text.removeprefix(first) if doubled else text) + begun

    def stops(self) -> list[int]:
        """The tokens that end an answer."""
        stop = self.model.generation_config.eos_token_id
        stop = self.tokenizer.eos_token_id if stop is None else stop
        return [] if stop is None else [stop] if isinstance(stop, int) else list(stop)

    # ---- how --------------------------------------------------------------------------------------

    def _encode(
        self, text: str, chat: bool, context: str, any_length: bool = False, span: tuple[int, int] | None = None
    ) -> tuple[list[int], int, int]:
        """The tokens of a text in a context, and the indices of the last and first token of the subject at ``span``.

        Without a ``span``, of the whole text. See ``LM.encode``.
        """
        (context,) = as_contexts([context])
        if not isinstance(text, str):
            raise TypeError(f"the prompt must be a string or a minilib.Request, not {type(text).__name__}: {text!r}")
        begin, end = (context.index(SLOT) + place for place in span or (0, len(text)))
        text = context.replace(SLOT, text)
        if not text:
            raise ValueError("the prompt is empty: give the model some text to go on from")
        rendered, start = self._render(text) if chat else (text, 0)
        ids, offsets = self._tokenise(rendered, "the prompt", special=not chat)
        if len(ids) >= self.context_length and not any_length:
            raise ValueError(
                f"the prompt has {len(ids)} tokens and {self.name} reads at most {self.context_length - 1} "
                f"before an answer; shorten {text[:40]!r}…"
            )
        if not ids:
            raise ValueError(f"the prompt {text!r} has no tokens: give the model some text to go on from")
        if span is None:
            return ids, len(ids) - 1, 0
        # The last token that covers the subject's last character (an emoji may take several), whatever else
        # was merged into it.
        last = start + end - 1
        position = max((i for i, (a, b) in enumerate(offsets) if a <= last < b), default=None)
        if position is None:
            raise ValueError(f"the subject's last token was not found in {text!r}: does the tokenizer drop characters?")
        # The first that reaches into it: some tokenizers leave spaces to no token.
        return ids, position, next(i for i, (_, b) in enumerate(offsets) if b > start + begin)

    def _encode_request(self, request: Request, context: str = SLOT, ended: bool = False) -> EncodedRequest:
        """A request's prompt, in a context, and its target; see ``LM.encode``."""
        ids, subject, subject_start = self._encode(request.text, request.chat, context, span=request.span)
        target = self.encode_target(request.target)
        if ended and request.chat and target[-1:] != (end := self._answer_end()):
            target += end
        if len(ids) + len(target) > self.context_length:
            raise ValueError(
                f"prompt and target have {len(ids)} + {len(target)} tokens and {self.name} reads "
                f"{self.context_length}: shorten one of them"
            )
        return EncodedRequest(ids, target, subject, subject_start)

    def as_prompts(self, prompts: Any, chat: bool) -> tuple[bool, list[str], list[list[int]]]:
        """Whether one prompt was given, all texts, and their tokens; a Request says itself whether it is chat."""
        single = isinstance(prompts, (str, Request))
        prompts = [prompts] if single else list(prompts) if isinstance(prompts, (list, tuple)) else prompts
        if not isinstance(prompts, list):
            raise TypeError(
                f"prompts must be a string, a minilib.Request or a list of them, not {type(prompts).__name__}"
            )
        if not prompts:
            raise ValueError("prompts is empty: give at least one")
        for prompt in prompts:
            if not isinstance(prompt, (str, Request)):
                raise TypeError(
                    f"prompts must hold strings or minilib.Request, not {type(prompt).__name__}: {prompt!r}"
                )
        texts = [(p.text, p.chat) if isinstance(p, Request) else (p, chat) for p in prompts]
        return single, [text for text, _ in texts], [self._encode(text, how, SLOT)[0] for text, how in texts]

    def _tokenise(self, text: str, what: str, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """The tokens of a text and where each stands in it; words that the model does not know are an error."""
        if not isinstance(text, str):
            raise TypeError(f"{what} must be a string, not {type(text).__name__}: {text!r}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{what} {text[:60]!r} holds half a character ({error}): repair or remove it") from error
        tokens = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        ids, offsets = list(tokens["input_ids"]), list(tokens["offset_mapping"])
        if special and self.closing:  # a text that has ended is no prompt
            ids, offsets = ids[: -self.closing], offsets[: -self.closing]
        unknown, vocabulary = self.tokenizer.unk_token_id, self.model.get_input_embeddings().num_embeddings
        for token, (start, stop) in zip(ids, offsets, strict=True):
            if token == unknown and start < stop and text[start:stop] != self.tokenizer.unk_token:
                word = text[start:stop].strip()
                where = f"(in {text[:60]!r})"
                if not word:
                    raise ValueError(f"{what} {text[:60]!r} has a space that no word follows: remove it")
                raise ValueError(f"{self.name} does not know the word {word!r} {where}: use words of its vocabulary")
            if token >= vocabulary:
                raise ValueError(
                    f"tokenizer gives the token {token} for {text[start:stop]!r}, which the model {self.name} has not: "
                    "use the tokenizer that the model was trained with"
                )
        return ids, offsets

    # ---- the chat template ------------------------------------------------------------------------

    def _render(self, text: str) -> tuple[str, int]:
        """The chat prompt around a user's message, and where in it the message starts."""
        if not self.has_chat:
            raise ValueError(f"chat=True needs a chat template and {self.name} has none: use chat=False")
        *before, _ = self._turns(text)

        def around(content: str) -> str:
            return self._apply_template([*before, {"role": "user", "content": content}])

        # Where a message starts is where an unmistakable one starts: the text itself may occur in the template.
        rendered, start = around(text), around(_MARK).find(_MARK)
        stripped = text.strip()  # as some templates do
        blank = text.index(stripped)
        for first in (start, start - blank):
            if start >= 0 and rendered.startswith(stripped, first + blank):
                return rendered, first
        raise ValueError(f"the chat template of {self.name} changes the message {text!r}: the subject is lost")

    def _turns(self, text: str) -> list[dict[str, str]]:
        """A user's message, and what stands before it."""
        return [*(self.opening(text) if self.opening else []), {"role": "user", "content": text}]

    def _apply_template(self, turns: list[dict[str, str]]) -> str:
        """Turns as the text that the model was trained on, up to where its answer begins."""
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
        return [token for token in first if token in self.stops()]
