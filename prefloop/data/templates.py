"""Chat templates: from messages to tokens, with the spans that a policy writes.

The rendered conversation is tokenised once and spans are found by character offsets: tokenising prompt and
completion apart can merge tokens differently at their border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from prefloop.errors import ModelError, TrainingError

Message = dict[str, str]
Messages = list[Message]

# What a template that asks for the time is told: what it writes must not depend on when.
_TIME = {
    "%A": "Friday", "%a": "Fri", "%B": "July", "%b": "Jul", "%d": "26", "%m": "07", "%Y": "2024", "%y": "24",
    "%H": "12", "%I": "12", "%M": "00", "%S": "00", "%p": "PM",
}  # fmt: skip
_FIXED_TIME = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{sign}', '{value}')" for sign, value in _TIME.items())
    + " }}{% endmacro %}"
)
# Stands in for what an answer says, to see where a template puts it.
_MARK = "zq5answer5qz"
_OTHER_TEMPLATE = (
    "give the model's tokenizer a template that only appends and writes content as it is: edit "
    "chat_template.jinja in its folder, or remove it there and prefloop uses one of its own"
)


def as_messages(value: str | Sequence[Message], role: str = "user") -> Messages:
    """A string becomes one message of `role`; messages are copied."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return [dict(message) for message in value]


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, generation_prompt: bool = False) -> str:
    """The conversation as the template writes it; what depends on the day gets 26 July 2024.

    Raises:
        ModelError: the template refuses the conversation (roles it does not know, for instance).
    """
    try:
        template = str(tokenizer.get_chat_template())
        if "strftime_now" in template:
            template = _FIXED_TIME + template
        return str(
            tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=generation_prompt
            )
        )
    except (MemoryError, OverflowError, RecursionError) as error:
        raise ModelError(
            f"{_named(tokenizer)} grows without end: {type(error).__name__} {error}", _OTHER_TEMPLATE
        ) from error
    except (TemplateError, ValueError, TypeError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ModelError(
            f"{_named(tokenizer)} refuses a conversation with roles {roles}: {error}",
            "change the rows' roles, or give the tokenizer another chat template",
        ) from error


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens at which a completion ends: the tokenizer's EOS, and the special token that the template puts
    after an assistant's turn when that is another one (`<|im_end|>`, `<|eot_id|>`)."""
    stops = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    probe = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    # What follows the content, wherever the template puts it: some open an answer with words of their own.
    tail = render(tokenizer, probe).rpartition("answer")[2]
    for token in tokenizer(tail.lstrip(), add_special_tokens=False)["input_ids"][:1]:
        special = token in tokenizer.all_special_ids or token in tokenizer.added_tokens_decoder
        if special and token not in stops:
            stops.append(int(token))
    if not stops:
        raise ModelError("the tokenizer has no end token and its template writes none after an answer")
    return stops


def _named(tokenizer: PreTrainedTokenizerBase) -> str:
    """A tokenizer's chat template in words: whose it is, or how it begins."""
    name = str(getattr(tokenizer, "name_or_path", ""))
    return (
        f"the chat template of {name}" if name else f"the chat template {str(tokenizer.chat_template)[:60]!r}"
    )


@dataclass(frozen=True)
class Encoded:
    """A conversation in tokens.

    Attributes:
        prompt_ids: tokens before the last assistant turn's content.
        completion_ids: tokens of the last answer, its end token included.
        trainable: one bool a token of prompt_ids + completion_ids, True where the token is to be learned;
            never the first of all, before which there is nothing.
        complete: False where the answer was cut, so that it has no end token.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    trainable: list[bool]
    complete: bool = True

    @property
    def input_ids(self) -> list[int]:
        return self.prompt_ids + self.completion_ids


class ChatEncoder:
    """Encodes prompts and completions with one tokenizer's template.

    What is too long loses the beginning of its prompt (a begin token stays). An answer longer than
    `max_length` - 8, or half of `max_length` where that is more, loses its end, so that some prompt is left.

    Args:
        tokenizer: a fast tokenizer (offsets are needed).
        max_length: longest prompt plus completion (tokens).

    Attributes:
        cut: how many prompts or conversations so far were longer than that.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        if not tokenizer.is_fast:
            raise ModelError(
                "the tokenizer gives no character offsets", "use the fast version of this tokenizer"
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.stops = stop_ids(tokenizer)
        self.cut = 0

    def prompt(self, prompt: str | Sequence[Message], room: int = 0) -> list[int]:
        """Tokens of a prompt that leave `room` for an answer (tokens); a longer one loses its beginning."""
        text = render(self.tokenizer, as_messages(prompt), generation_prompt=True)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        kept = self._kept(ids, room)
        self.cut += len(kept) < len(ids)
        return [ids[i] for i in kept]

    def completions(
        self, prompt: str | Sequence[Message], completions: Sequence[str | Sequence[Message]]
    ) -> list[Encoded]:
        """Encodes several completions of one prompt, cut alike: all see the same prompt and have equal room.

        Raises:
            TrainingError: a completion has no token.
        """
        pairs = [
            self._spans(as_messages(prompt), as_messages(c, "assistant"), last_only=True) for c in completions
        ]
        longest = max(len(ids) - start for ids, start, _ in pairs)
        room = min(longest, self._answer_limit)
        encoded = [self._encoded(ids, start, spans, room) for ids, start, spans in pairs]
        self.cut += any(len(e.input_ids) < len(ids) for e, (ids, _, _) in zip(encoded, pairs, strict=True))
        return encoded

    def conversation(
        self, prompt: str | Sequence[Message], completion: str | Sequence[Message], *, every_turn: bool
    ) -> Encoded:
        """Encodes a demonstration; with `every_turn` each assistant turn of the prompt is trainable too.

        Raises:
            TrainingError: there is no answer. ModelError: the template writes it in a way that hides which
                tokens are its own.
        """
        ids, start, spans = self._spans(
            as_messages(prompt), as_messages(completion, "assistant"), last_only=not every_turn
        )
        example = self._encoded(ids, start, spans, min(len(ids) - start, self._answer_limit))
        self.cut += len(example.input_ids) < len(ids)
        return example

    @property
    def _answer_limit(self) -> int:
        """Longest answer (tokens): some of the prompt stays before it."""
        return max(self.max_length - 8, self.max_length // 2)

    def _kept(self, ids: list[int], room: int) -> list[int]:
        """Which tokens of a prompt stay where an answer takes `room`: a begin token, and the last ones."""
        size = max(self.max_length - room, 1)
        if len(ids) <= size:
            return list(range(len(ids)))
        opening = [0] if size > 1 and ids[0] == self.tokenizer.bos_token_id else []
        return opening + list(range(len(ids) - size + len(opening), len(ids)))

    def _encoded(self, ids: list[int], start: int, spans: list[tuple[int, int]], room: int) -> Encoded:
        """Tokens from `_spans`, of which the answer keeps at most `room` and the prompt what is left."""
        kept = self._kept(ids[:start], room)
        places = [*kept, *range(start, min(start + room, len(ids)))]
        trainable = [n > 0 and any(low <= i < high for low, high in spans) for n, i in enumerate(places)]
        return Encoded(
            [ids[i] for i in kept],
            [ids[i] for i in places[len(kept) :]],
            trainable,
            complete=len(ids) - start <= room,
        )

    def _spans(
        self, prompt: Messages, completion: Messages, *, last_only: bool
    ) -> tuple[list[int], int, list[tuple[int, int]]]:
        """Token ids up to the last answer's end token, where that answer starts, and the trainable spans."""
        messages = [*prompt, *completion]
        if not completion or completion[-1]["role"] != "assistant":
            raise TrainingError("a completion must end with an assistant's message")
        text = render(self.tokenizer, messages)
        batch: Any = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids, offsets = list(batch["input_ids"]), batch["offset_mapping"]
        last = len(messages) - 1
        spans: list[tuple[int, int]] = []
        closings = {""}
        for turn in range(last, -1, -1):
            if messages[turn]["role"] != "assistant" or (last_only and turn != last):
                continue
            begin, end = self._said(text, messages, turn)
            # A token that reaches over a border belongs to the answer.
            low = next((i for i, (_, high) in enumerate(offsets) if high > begin), len(ids))
            after = next((i for i, (first, _) in enumerate(offsets) if first >= end), len(ids))
            stop = next((i for i in range(after, len(ids)) if ids[i] in self.stops), None)
            closing = "" if stop is None else text[end : offsets[stop][0]].strip()
            if turn == last:
                closings.add(closing)
                ids = ids[:after] if stop is None else ids[: stop + 1]
                if stop is None:  # the template ends an answer with no stop token
                    ids, offsets = [*ids, self.stops[0]], offsets[:after]
                spans.append((low, len(ids)))
            else:
                # A stop token that other words come before is a later turn's.
                spans.append((low, after if stop is None or closing not in closings else stop + 1))
        start = spans[0][0]
        if len(ids) <= start:
            raise TrainingError("a completion has no trainable token")
        return ids, start, spans

    def _said(self, text: str, messages: Messages, turn: int) -> tuple[int, int]:
        """Characters of the rendered conversation between a turn's generation prompt and its end token.

        The template is asked where it puts the turn's content by rendering a mark in its place: whatever it
        trims, drops or adds, what stands before and after the mark stands before and after the content.

        Raises:
            ModelError: it does not, or an answer is not preceded by what sampling would start from.
        """
        marked = [*messages[:turn], {**messages[turn], "content": _MARK}, *messages[turn + 1 :]]
        pieces = render(self.tokenizer, marked).split(_MARK)
        if len(pieces) != 2 or not text.endswith(pieces[1]):
            raise ModelError(
                f"{_named(self.tokenizer)} does not write an assistant's content as it is, once: the tokens "
                "to learn cannot be found",
                _OTHER_TEMPLATE,
            )
        before, end = len(pieces[0]), len(text) - len(pieces[1])
        if turn == 0:
            return before, end
        opened = render(self.tokenizer, messages[:turn], generation_prompt=True)
        if text.startswith(opened) and len(opened) <= end:
            return len(opened), end
        if turn < len(messages) - 1 and text.startswith(pieces[0]):
            return before, end  # rendered otherwise while it was the last turn, as some system prompts are
        if text.startswith(render(self.tokenizer, messages[:turn])):
            raise ModelError(
                f"{_named(self.tokenizer)} asks for an answer with other words than it opens one with: "
                f"{opened[-20:]!r} against {text[len(opened) - 20 : len(opened)]!r}",
                _OTHER_TEMPLATE,
            )
        raise ModelError(
            f"{_named(self.tokenizer)} rewrites earlier turns, so an answer's span cannot be found",
            _OTHER_TEMPLATE,
        )
