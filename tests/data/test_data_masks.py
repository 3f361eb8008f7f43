"""What is learned of a conversation, written out by hand, for every kind of template and tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from prefloop.data.batching import collate
from prefloop.data.default_templates import PLAIN_TEMPLATE, ensure_chat_template
from prefloop.data.templates import (
    ChatEncoder,
    Encoded,
    Message,
    render,
    stop_ids,
)
from prefloop.errors import DataError, ModelError, PrefloopError, TrainingError
from prefloop.training.language_model import encode_demonstrations
from tests import families
from tests.families import CHATML, CHATML_WITH_SYSTEM, HEADERS, INST, REASONING, TURNS, byte_level

TALK: list[Message] = [
    {"role": "user", "content": "And the lamp?"},
    {"role": "assistant", "content": "It is red, I think. "},
    {"role": "user", "content": "And the kettle?"},
]
ANSWER = "The kettle is blue."
HEADER_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def headers() -> PreTrainedTokenizerFast:
    return byte_level(
        HEADERS, eos="<|end_of_text|>", bos="<|begin_of_text|>", extra=HEADER_TOKENS, adds_bos=True
    )


def learned(tokens: PreTrainedTokenizerFast, example: Encoded) -> list[str]:
    """The text of each run of learned tokens."""
    runs: list[list[int]] = [[]]
    for token, flag in zip(example.input_ids, example.trainable, strict=True):
        if flag:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [str(tokens.decode(run)) for run in runs if run]


MAKERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "chatml": lambda: byte_level(CHATML),
    "chatml with a system prompt of its own": lambda: byte_level(CHATML_WITH_SYSTEM),
    "pad is eos": lambda: byte_level(CHATML, pad="<|endoftext|>"),
    "end is eos and pad": lambda: byte_level(CHATML, eos="<|im_end|>", pad="<|im_end|>"),
    "headers": headers,
    "turns, unigram": lambda: families.unigram(TURNS),
    "inst, byte fallback": lambda: families.sentencepiece_bpe(INST),
    "inst, byte-level": lambda: byte_level(INST, eos="</s>", bos="<s>"),
    "plain, byte-level": lambda: byte_level(PLAIN_TEMPLATE),
    "plain, unigram": lambda: families.unigram(PLAIN_TEMPLATE),
    "plain, byte fallback": lambda: families.sentencepiece_bpe(PLAIN_TEMPLATE),
}
# Between the words of a sentence-piece answer and what the template writes before them stands a space, and
# the first answer's trailing space is trimmed or kept as the template does.
EXPECTED = {
    "chatml": ["It is red, I think. <|im_end|>", "The kettle is blue.<|im_end|>"],
    "chatml with a system prompt of its own": [
        "It is red, I think. <|im_end|>",
        "The kettle is blue.<|im_end|>",
    ],
    "pad is eos": ["It is red, I think. <|im_end|>", "The kettle is blue.<|im_end|>"],
    "end is eos and pad": ["It is red, I think. <|im_end|>", "The kettle is blue.<|im_end|>"],
    "headers": ["It is red, I think.<|eot_id|>", "The kettle is blue.<|eot_id|>"],
    "turns, unigram": ["It is red, I think.<end_of_turn>", "The kettle is blue.<end_of_turn>"],
    "inst, byte fallback": ["It is red, I think.</s>", "The kettle is blue.</s>"],
    "inst, byte-level": [" It is red, I think.</s>", " The kettle is blue.</s>"],
    "plain, byte-level": ["It is red, I think. <|endoftext|>", "The kettle is blue.<|endoftext|>"],
    "plain, unigram": ["It is red, I think. <eos>", "The kettle is blue.<eos>"],
    "plain, byte fallback": ["It is red, I think. </s>", "The kettle is blue.</s>"],
}


@pytest.mark.parametrize("kind", MAKERS)
def test_the_answers_and_their_end_tokens_are_learned(kind: str) -> None:
    tokens = MAKERS[kind]()
    encoder = ChatEncoder(tokens, 200)
    last = encoder.conversation(TALK, ANSWER, every_turn=False)
    assert learned(tokens, last) == EXPECTED[kind][1:]
    # The prompt is the one that sampling starts from.
    assert last.prompt_ids == encoder.prompt(TALK)
    assert last.completion_ids[-1] in encoder.stops
    assert last.trainable == [False] * len(last.prompt_ids) + [True] * len(last.completion_ids)
    both = encoder.conversation(TALK, ANSWER, every_turn=True)
    assert learned(tokens, both) == EXPECTED[kind]
    assert both.input_ids == last.input_ids
    assert last.complete
    assert encoder.cut == 0


@pytest.mark.parametrize("kind", MAKERS)
def test_a_begin_token_stands_once_and_stays_when_a_prompt_is_cut(kind: str) -> None:
    tokens = MAKERS[kind]()
    encoder = ChatEncoder(tokens, 30)
    short = ChatEncoder(tokens, 200).conversation(TALK, ANSWER, every_turn=True)
    long = encoder.conversation([{**TALK[0], "content": "And the lamp? " * 30}], "Blue.", every_turn=False)
    assert encoder.cut == 1
    assert len(long.input_ids) == len(long.trainable) == 30
    assert learned(tokens, long)[0].strip().startswith("Blue.")
    begins = tokens.bos_token_id if "bos_token" in (tokens.chat_template or "") else None
    for example in (short, long):
        if begins is not None:
            assert example.input_ids[0] == begins
            assert example.input_ids.count(begins) == 1
        assert not example.trainable[0]


def test_a_mask_by_hand() -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} "
        "{% if m['role'] == 'assistant' %}<end> {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant :{% endif %}"
    )
    vocabulary = ["?", "user", "assistant", ":", "hello", "good", "day", "bye", "ciao", "<end>"]
    tokens = families.words(template, vocabulary, eos_token="<end>")
    talk = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "good day"},
        {"role": "user", "content": "bye"},
    ]
    example = ChatEncoder(tokens, 99).conversation(talk, "ciao ciao", every_turn=True)
    # user : hello  assistant : good day <end>  user : bye  assistant : ciao ciao <end>
    assert example.input_ids == [1, 3, 4, 2, 3, 5, 6, 9, 1, 3, 7, 2, 3, 8, 8, 9]
    assert [int(flag) for flag in example.trainable] == [0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1]
    last = ChatEncoder(tokens, 99).conversation(talk, "ciao ciao", every_turn=False)
    assert [int(flag) for flag in last.trainable] == [0] * 13 + [1, 1, 1]


def test_reasoning_is_learned_where_the_template_keeps_it() -> None:
    tokens = byte_level(REASONING)
    thought = "<think>\nLamps are red.\n</think>\n\n"
    talk = [TALK[0], {"role": "assistant", "content": thought + "It is red."}, TALK[2]]
    encoder = ChatEncoder(tokens, 300)
    example = encoder.conversation(talk, "<think>\nHm.\n</think>\n\nBlue.", every_turn=True)
    assert learned(tokens, example) == [
        "It is red.<|im_end|>",
        "<think>\nHm.\n</think>\n\nBlue.<|im_end|>",
    ]
    # An answer without reasoning is opened with an empty block, which the policy has to write itself.
    plain = encoder.conversation(talk, "Blue.", every_turn=False)
    assert learned(tokens, plain) == ["<think>\n\n</think>\n\nBlue.<|im_end|>"]
    assert plain.prompt_ids == encoder.prompt(talk)


def test_the_next_question_does_not_hide_an_end_token() -> None:
    # "I" stands in the answer and "e" in the end token: neither is where the next question is.
    tokens = byte_level(REASONING)
    for question in ("I", "e", "red", "<"):
        talk = [
            TALK[0],
            {"role": "assistant", "content": "<think>x</think>It is red, I think."},
            {"role": "user", "content": question},
        ]
        example = ChatEncoder(tokens, 300).conversation(talk, "Blue.", every_turn=True)
        assert learned(tokens, example)[0] == "It is red, I think.<|im_end|>"


def test_an_answer_that_repeats_its_question_or_the_template_is_found() -> None:
    for answer in ("And the kettle?", "assistant", "user\nAnd", "i"):
        tokens = byte_level(CHATML)
        example = ChatEncoder(tokens, 300).conversation(TALK, answer, every_turn=False)
        assert learned(tokens, example) == [f"{answer}<|im_end|>"]


def test_a_system_prompt_in_the_last_question_leaves_earlier_answers_learnable() -> None:
    tokens = families.sentencepiece_bpe(INST)
    talk = [{"role": "system", "content": "Be kind."}, *TALK]
    assert render(tokens, talk) == (
        "<s>[INST] And the lamp?[/INST] It is red, I think.</s>[INST] Be kind.\n\nAnd the kettle?[/INST]"
    )
    example = ChatEncoder(tokens, 300).conversation(talk, ANSWER, every_turn=True)
    assert learned(tokens, example) == ["It is red, I think.</s>", "The kettle is blue.</s>"]


@pytest.mark.parametrize("make", [families.sentencepiece_bpe, byte_level, headers])
def test_letters_that_are_several_tokens_are_learned_whole(
    make: Callable[[], PreTrainedTokenizerFast],
) -> None:
    tokens = make()
    encoder = ChatEncoder(tokens, 300)
    example = encoder.conversation("Ünïcode?", "é😀", every_turn=False)
    assert learned(tokens, example)[0].strip().startswith("é😀")
    assert sum(example.trainable) >= 7  # two bytes, four bytes and the end token
    assert example.prompt_ids == encoder.prompt("Ünïcode?")


def test_content_that_the_template_changes_is_learned_as_it_is_written() -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{{ m['content'] | trim | replace('colour', 'color') | truncate(999) }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokens = byte_level(template)
    talk = [TALK[0], {"role": "assistant", "content": "\n its colour \n"}, TALK[2]]
    example = ChatEncoder(tokens, 300).conversation(talk, "  A colour.", every_turn=True)
    assert learned(tokens, example) == ["its color<|im_end|>", "A color.<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        # Writes no assistant's turn; writes it in capitals; writes it twice.
        (
            "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}",
            "once",
        ),
        ("{% for m in messages %}{{ m['content'] | upper }}<|im_end|>{% endfor %}", "as it is"),
        ("{% for m in messages %}{{ m['content'] }}{{ m['content'] }}<|im_end|>{% endfor %}", "once"),
        # Opens an answer with a block that a conversation does not have.
        (CHATML.replace("assistant\n{%", "assistant\n<think>\n{%"), "asks for an answer with other words"),
        ("{{ messages | length }}" + CHATML, "rewrites earlier turns"),
    ],
)
def test_a_template_that_cannot_be_handled_is_named(template: str, message: str) -> None:
    tokens = byte_level(template)
    with pytest.raises(ModelError, match=message) as caught:
        encode_demonstrations([{"prompt": "a?", "completion": "b", "id": "row-7"}], tokens, 99)
    assert caught.value.message.startswith(
        ("demonstration row-7: the chat template '{", 'demonstration row-7: the chat template "{')
    )
    assert "chat_template.jinja" in caught.value.remedy
    tokens.name_or_path = "some/model"
    with pytest.raises(ModelError, match="the chat template of some/model"):
        ChatEncoder(tokens, 99).conversation("a?", "b", every_turn=False)


def test_a_row_that_cannot_be_encoded_is_named() -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a?", "completion": "b"},
        {"prompt": [{"role": "system", "content": "c"}, {"role": "user", "content": "d"}], "completion": "e"},
    ]
    with pytest.raises(ModelError, match=r"demonstration 2: .* refuses .* roles system, user, assistant"):
        encode_demonstrations(rows, families.unigram(TURNS), 99)
    rows[1] = {"id": "x", "prompt": "a?", "completion": [{"role": "user", "content": "b"}]}
    with pytest.raises(TrainingError, match="demonstration x: a completion must end with an assistant"):
        encode_demonstrations(rows, families.unigram(TURNS), 99)


def test_a_row_of_which_nothing_can_be_learned_is_an_error() -> None:
    class Blind(ChatEncoder):
        def conversation(self, *args: Any, **options: Any) -> Encoded:
            return Encoded([1], [2], [False, False])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefloop.training.language_model.ChatEncoder", Blind)
        with pytest.raises(DataError, match="demonstration 1 has no trainable token"):
            encode_demonstrations([{"prompt": "a", "completion": "b"}], byte_level(), 99)
    assert issubclass(DataError, PrefloopError)


def test_an_empty_answer_is_its_end_token() -> None:
    tokens = byte_level(CHATML)
    example = ChatEncoder(tokens, 99).conversation("a?", "", every_turn=False)
    assert learned(tokens, example) == ["<|im_end|>"]


def test_an_answer_that_does_not_fit_is_cut_and_says_so() -> None:
    tokens = byte_level(CHATML)
    encoder = ChatEncoder(tokens, 40)
    example = encoder.conversation("And the lamp? " * 9, "The lamp is red. " * 20, every_turn=False)
    assert not example.complete
    assert len(example.prompt_ids), len(example.completion_ids) == (8, 32)
    assert example.completion_ids[-1] not in encoder.stops
    assert encoder.cut == 1
    short, long = encoder.completions("And the lamp?", ["Red.", "The lamp is red. " * 20])
    assert (short.complete, long.complete) == (True, False)
    whole = encoder.conversation("And the lamp? " * 9, "Red.", every_turn=False)
    assert whole.complete
    assert encoder.cut == 3


def test_an_end_token_that_is_the_pad_token_is_learned() -> None:
    tokens = byte_level(CHATML, eos="<|im_end|>", pad="<|im_end|>")
    examples, _ = encode_demonstrations(
        [{"prompt": "a?", "completion": "b"}, {"prompt": "a?", "completion": "It is red, I think."}],
        tokens,
        99,
    )
    batch = collate(examples, tokens)
    short = len(examples[0].input_ids)
    assert batch.input_ids[0, short - 1] == tokens.eos_token_id
    assert batch.wanted[0, short - 2 : short].tolist() == [True, True]
    assert not batch.wanted[0, short:].any()
    assert not batch.attention_mask[0, short:].any()


def test_a_tokenizer_that_begins_a_text_gets_a_template_that_does() -> None:
    tokens = headers()
    tokens.chat_template = None
    assert ensure_chat_template(tokens)
    assert render(tokens, TALK[:1]) == "<|begin_of_text|>User:\nAnd the lamp?\n\n"
    ids = ChatEncoder(tokens, 99).prompt("And the lamp?")
    assert ids[0] == tokens.bos_token_id
    assert ids.count(tokens.bos_token_id) == 1
    for other in (byte_level(None), families.sentencepiece_bpe(None), families.wordpiece(None)):
        ensure_chat_template(other)
        assert other.chat_template == PLAIN_TEMPLATE


def test_an_end_token_after_a_space_is_a_stop() -> None:
    tokens = byte_level(CHATML.replace("<|im_end|>", " <|im_end|>"))
    assert tokens.convert_ids_to_tokens(stop_ids(tokens)) == ["<|endoftext|>", "<|im_end|>"]
    example = ChatEncoder(tokens, 300).conversation(TALK, ANSWER, every_turn=True)
    assert learned(tokens, example) == ["It is red, I think.  <|im_end|>", "The kettle is blue. <|im_end|>"]


def test_what_a_template_writes_does_not_depend_on_the_day() -> None:
    dated = "{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}{{ day }}: "
    tokens = byte_level(dated + CHATML)
    assert render(tokens, TALK[:1]).startswith("26 Jul 2024: <|im_start|>user\nAnd the lamp?")
    tokens.chat_template = "{{ strftime_now('%A, %Y-%m-%d %H:%M') }} " + CHATML
    assert render(tokens, TALK[:1]).startswith("Friday, 2024-07-26 12:00 <|im_start|>")
