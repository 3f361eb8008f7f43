"""Spans of answers by offsets, for templates and tokenizers that differ where others go wrong."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prefloop.data.default_templates import PAD, PLAIN_TEMPLATE, ensure_chat_template
from prefloop.data.templates import (
    ChatEncoder,
    Message,
    as_messages,
    render,
    stop_ids,
)
from prefloop.errors import ModelError, TrainingError
from prefloop.models.loading import load_tokenizer
from tests import tiny

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Opens the last answer with words of its own, as templates of reasoning models do.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Ends no answer but the last.
LAST_ONLY = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ eos_token }}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ m['content'] }}{{ eos_token }}{% endfor %}"
)
REWRITING = (
    "{{ messages | length }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TALK: list[Message] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "What colour is the lamp?"},
    {"role": "assistant", "content": "The lamp is red."},
    {"role": "user", "content": "And the kettle?"},
]


def byte_level(*, template: str | None = None, pad: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose EOS is `<eos>` and that knows ChatML's tokens, as many base models do."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<eos>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([*tiny.TEXTS * 8, "Assistant: The kettle", "[assistant] The lamp"] * 8, trainer)
    tokens = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token=pad)
    tokens.chat_template = template
    return tokens


def unigram() -> PreTrainedTokenizerFast:
    """A unigram model that marks spaces, as SentencePiece's does."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    letters = [chr(c) for c in range(32, 127)]
    core.train_from_iterator([*tiny.TEXTS * 8, *letters, "User:\n", "Assistant:\n"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")


def learned(tokens: PreTrainedTokenizerFast, example: object) -> list[str]:
    """The text of each run of trainable tokens."""
    runs: list[list[int]] = []
    before = False
    for token, flag in zip(example.input_ids, example.trainable, strict=True):  # type: ignore[attr-defined]
        if flag:
            if not before:
                runs.append([])
            runs[-1].append(token)
        before = flag
    return [str(tokens.decode(run)) for run in runs]


def test_the_last_answer_and_its_end_token_are_learned() -> None:
    tokens = byte_level(template=CHATML, pad=PAD)
    example = ChatEncoder(tokens, 200).conversation(TALK, "The kettle is blue.", every_turn=False)
    assert learned(tokens, example) == ["The kettle is blue.<|im_end|>"]
    assert tokens.decode(example.completion_ids) == "The kettle is blue.<|im_end|>"
    assert tokens.decode(example.prompt_ids) == render(tokens, TALK, generation_prompt=True)


def test_every_answer_of_a_conversation_can_be_learned() -> None:
    tokens = byte_level(template=CHATML, pad=PAD)
    example = ChatEncoder(tokens, 200).conversation(TALK, "The kettle is blue.", every_turn=True)
    assert learned(tokens, example) == ["The lamp is red.<|im_end|>", "The kettle is blue.<|im_end|>"]


def test_training_and_sampling_see_the_same_prompt() -> None:
    for tokens in (
        byte_level(template=CHATML, pad=PAD),
        byte_level(template=PLAIN_TEMPLATE),
        unigram(),
        tiny.tokenizer(),
    ):
        ensure_chat_template(tokens)
        encoder = ChatEncoder(tokens, 200)
        example = encoder.conversation(TALK, "The kettle is blue.", every_turn=False)
        assert example.prompt_ids == encoder.prompt(TALK)
        assert example.completion_ids[-1] in encoder.stops
        text = tokens.decode(example.completion_ids, skip_special_tokens=True)
        assert text.strip() == "The kettle is blue."


def test_an_end_token_of_the_template_is_a_stop_beside_eos() -> None:
    tokens = byte_level(template=CHATML, pad=PAD)
    names = tokens.convert_ids_to_tokens(stop_ids(tokens))
    assert names == ["<eos>", "<|im_end|>"]
    tokens.chat_template = THINKING
    assert tokens.convert_ids_to_tokens(stop_ids(tokens)) == ["<eos>", "<|im_end|>"]
    assert stop_ids(tiny.tokenizer()) == [tiny.tokenizer().eos_token_id]


def test_an_answer_that_the_template_opens_is_found() -> None:
    tokens = byte_level(template=THINKING, pad=PAD)
    example = ChatEncoder(tokens, 200).conversation(TALK, "The kettle is blue.", every_turn=True)
    assert learned(tokens, example) == [
        "The lamp is red.<|im_end|>",
        "<think>\n\n</think>\n\nThe kettle is blue.<|im_end|>",
    ]


def test_a_turn_without_an_end_token_does_not_reach_into_the_next() -> None:
    tokens = byte_level(template=LAST_ONLY, pad=PAD)
    example = ChatEncoder(tokens, 200).conversation(TALK, "The kettle is blue.", every_turn=True)
    first, last = learned(tokens, example)
    assert first.strip() == "The lamp is red."
    assert last.strip() == "The kettle is blue.<eos>"


def test_a_template_without_any_end_token_gets_one() -> None:
    tokens = byte_level(
        template="{% for m in messages %}\n{{ m['role'] }}\n{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}\nassistant\n{% endif %}"
    )
    example = ChatEncoder(tokens, 200).conversation("Hello?", "The kettle", every_turn=False)
    assert learned(tokens, example) == ["The kettle<eos>"]


def test_a_merge_across_the_border_belongs_to_the_answer() -> None:
    """The template's last space and the answer's first word are one token, which is learned whole."""
    tokens = byte_level(template=LAST_ONLY, pad=PAD)
    encoder = ChatEncoder(tokens, 200)
    example = encoder.conversation("And the kettle?", "The kettle is blue.", every_turn=False)
    whole = tokens(
        render(tokens, [*as_messages("And the kettle?"), *as_messages("The kettle is blue.", "assistant")])
    )
    assert example.input_ids == whole["input_ids"][: len(example.input_ids)]
    assert tokens.decode(example.completion_ids[:1]).startswith(" ")
    assert learned(tokens, example)[0].lstrip() == "The kettle is blue.<eos>"


def test_a_tokenizer_without_template_gets_plain_words() -> None:
    tokens = byte_level()
    assert ensure_chat_template(tokens)
    assert tokens.chat_template == PLAIN_TEMPLATE
    assert render(tokens, TALK[1:3]) == (
        "User:\nWhat colour is the lamp?\n\nAssistant:\nThe lamp is red.<eos>\n\n"
    )
    assert not ensure_chat_template(tokens)
    assert stop_ids(tokens) == [tokens.eos_token_id]


@pytest.mark.parametrize("pad", [None, "<eos>"])
def test_a_pad_token_of_its_own_is_added(pad: str | None, tmp_path: object) -> None:
    byte_level(template=CHATML, pad=pad).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")  # type: ignore[operator]
    tokens = load_tokenizer(str(tmp_path))
    assert tokens.pad_token == PAD
    assert tokens.pad_token_id != tokens.eos_token_id
    assert tokens.padding_side == "left"


def test_a_tokenizer_without_any_end_is_refused() -> None:
    tokens = byte_level(template="{% for m in messages %}{{ m['content'] }} {% endfor %}")
    tokens.eos_token = None
    with pytest.raises(ModelError, match="no end token"):
        ChatEncoder(tokens, 100)


def test_a_template_that_refuses_a_role_is_named() -> None:
    tokens = byte_level(template=STRICT)
    with pytest.raises(ModelError, match=r"roles system, user, assistant, user: no system role"):
        ChatEncoder(tokens, 100).prompt(TALK)


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    with pytest.raises(ModelError, match="rewrites earlier turns"):
        ChatEncoder(byte_level(template=REWRITING), 100).conversation("a", "b", every_turn=False)


def test_a_completion_must_be_an_assistants() -> None:
    encoder = ChatEncoder(tiny.tokenizer(), 100)
    with pytest.raises(TrainingError, match="must end with an assistant"):
        encoder.conversation("a", [{"role": "user", "content": "b"}], every_turn=False)


def test_a_pair_is_cut_alike() -> None:
    tokens = tiny.tokenizer()
    encoder = ChatEncoder(tokens, 40)
    short, long = encoder.completions("The lamp is red. " * 20, ["Blue.", "The kettle is blue. " * 20])
    assert short.prompt_ids == long.prompt_ids
    assert len(long.input_ids) == 40
    # The longest answer leaves eight tokens to the prompt: its end, with the words that open an answer.
    assert len(long.prompt_ids) == 8
    assert tokens.decode(short.prompt_ids).endswith("red. <|end|><|assistant|>")
    assert tokens.decode(short.completion_ids) == "Blue.<|end|>"
    assert encoder.cut == 1


def test_a_demonstration_that_is_cut_counts_once() -> None:
    tokens = tiny.tokenizer()
    encoder = ChatEncoder(tokens, 40)
    whole = encoder.conversation("And the lamp?", "Blue.", every_turn=False)
    assert encoder.cut == 0
    both = encoder.conversation("The lamp is red. " * 20, "The kettle is blue. " * 20, every_turn=False)
    assert encoder.cut == 1
    assert len(both.input_ids) == 40
    assert len(whole.input_ids) < 40
    assert both.trainable == [False] * 8 + [True] * 32
    # An end that was cut off is not learned: the answer goes on.
    assert both.completion_ids[-1] != tokens.eos_token_id


def test_a_prompt_leaves_room_for_the_answer() -> None:
    encoder = ChatEncoder(tiny.tokenizer(), 40)
    assert len(encoder.prompt("The lamp is red. " * 20, room=15)) == 25
    assert encoder.cut == 1
