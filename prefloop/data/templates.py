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

USER, ASSISTANT, SYSTEM, END, PAD = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|pad|>"
ROLE_TOKENS = (USER, ASSISTANT, SYSTEM, END, PAD)

# For tokenizers that know the role tokens.
ROLE_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# For tokenizers without a template of their own: plain words, and the tokenizer's end token after an answer.
# A line break opens each turn, since a space there would merge with the first word: training would then see
# tokens at the border that sampling, which stops before that word, never gives.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}:\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)


def as_messages(value: str | Sequence[Message], role: str = "user") -> Messages:
    """A string becomes one message of `role`; messages are copied."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return [dict(message) for message in value]


def ensure_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Gives a tokenizer that has no chat template a default one; True if it did."""
    if tokenizer.chat_template:
        return False
    known = tokenizer.get_vocab()
    tokenizer.chat_template = ROLE_TEMPLATE if USER in known and ASSISTANT in known else PLAIN_TEMPLATE
    return True


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, generation_prompt: bool = False) -> str:
    """The conversation as the template writes it.

    Raises:
        ModelError: the template refuses the conversation (roles it does not know, for instance).
    """
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
        )
    except (TemplateError, ValueError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ModelError(
            f"the chat template refuses a conversation with roles {roles}: {error}",
            "change the rows' roles, or give the tokenizer another chat template",
        ) from error


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens at which a completion ends: the tokenizer's EOS, and the special token that the template puts
    after an assistant's turn when that is another one (`<|im_end|>`, `<|eot_id|>`)."""
    stops = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    probe = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    # What follows the content, wherever the template puts it: some open an answer with words of their own.
    tail = render(tokenizer, probe).rpartition("answer")[2]
    for token in tokenizer(tail, add_special_tokens=False)["input_ids"][:1]:
        special = token in tokenizer.all_special_ids or token in tokenizer.added_tokens_decoder
        if special and token not in stops:
            stops.append(int(token))
    if not stops:
        raise ModelError("the tokenizer has no end token and its template writes none after an answer")
    return stops


@dataclass(frozen=True)
class Encoded:
    """A conversation in tokens.

    Attributes:
        prompt_ids: tokens before the last assistant turn's content.
        completion_ids: tokens of the last answer, its end token included.
        trainable: one bool a token of prompt_ids + completion_ids, True where the token is to be learned.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    trainable: list[bool]

    @property
    def input_ids(self) -> list[int]:
        return self.prompt_ids + self.completion_ids


class ChatEncoder:
    """Encodes prompts and completions with one tokenizer's template.

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
        kept = self._end_of(ids, room)
        self.cut += len(kept) < len(ids)
        return kept

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
        encoded = []
        for ids, start, _ in pairs:
            answer = ids[start:][:room]
            kept = self._end_of(ids[:start], room)
            encoded.append(Encoded(kept, answer, [False] * len(kept) + [True] * len(answer)))
        self.cut += any(len(e.input_ids) < len(ids) for e, (ids, _, _) in zip(encoded, pairs, strict=True))
        return encoded

    def conversation(
        self, prompt: str | Sequence[Message], completion: str | Sequence[Message], *, every_turn: bool
    ) -> Encoded:
        """Encodes a demonstration; with `every_turn` each assistant turn of the prompt is trainable too."""
        ids, start, spans = self._spans(
            as_messages(prompt), as_messages(completion, "assistant"), last_only=not every_turn
        )
        trainable = [any(low <= i < high for low, high in spans) for i in range(len(ids))]
        answer = ids[start:][: self._answer_limit]
        kept = self._end_of(ids[:start], len(answer))
        self.cut += len(kept) + len(answer) < len(ids)
        mask = trainable[start - len(kept) : start] + trainable[start : start + len(answer)]
        return Encoded(kept, answer, mask)

    @property
    def _answer_limit(self) -> int:
        """Longest answer (tokens): some of the prompt stays before it."""
        return max(self.max_length - 8, self.max_length // 2)

    def _end_of(self, ids: list[int], room: int) -> list[int]:
        return ids[-max(self.max_length - room, 1) :]

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
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        spans = []
        for turn in turns[-1:] if last_only else turns:
            opened = render(self.tokenizer, messages[:turn], generation_prompt=True)
            if not text.startswith(opened):
                raise ModelError(
                    "the chat template rewrites earlier turns, so an answer's span cannot be found",
                    "use a template that only appends",
                )
            low = next((i for i, (_, end) in enumerate(offsets) if end > len(opened)), len(ids))
            first, high = self._turn_end(text, ids, offsets, messages, turn, len(opened))
            if high is None:
                high = first
                if turn == turns[-1]:
                    # The template ends the answer with no stop token: add one.
                    ids, offsets, high = [*ids[:first], self.stops[0]], offsets[:first], first + 1
            spans.append((low, high))
        start, end = spans[-1]
        if end <= start:
            raise TrainingError("a completion has no trainable token")
        return ids[:end], start, spans

    def _turn_end(
        self,
        text: str,
        ids: list[int],
        offsets: list[tuple[int, int]],
        messages: Messages,
        turn: int,
        opened: int,
    ) -> tuple[int, int | None]:
        """The first token after what a turn says, and the place after its end token, None where it has none.

        The end token is looked for before what the next message says, so that it is never a later turn's.
        """
        said = messages[turn]["content"].strip()
        found = text.find(said, opened)
        closed = found + len(said) if found >= 0 else opened
        border = len(text)
        if turn + 1 < len(messages):
            following = text.find(messages[turn + 1]["content"].strip(), closed)
            border = following if following >= 0 else border
        first = next((i for i, (begin, _) in enumerate(offsets) if begin >= closed), len(ids))
        ends = (i + 1 for i in range(first, len(ids)) if offsets[i][0] < border and ids[i] in self.stops)
        return first, next(ends, None)
