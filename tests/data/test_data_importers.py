"""Each format's converter on records as its publishers write them."""

from __future__ import annotations

from typing import Any

import pytest

from prefloop.data.importing import formats, load_format
from prefloop.errors import DataError


def convert(format: str, record: Any, **options: str) -> list[tuple[str, dict[str, Any]]]:
    return list(load_format(format)[1](record, options))


def one(format: str, record: Any, **options: str) -> tuple[str, dict[str, Any]]:
    (found,) = convert(format, record, **options)
    return found


def test_every_format_has_a_description() -> None:
    assert {"hh-rlhf", "trl", "table", "native", "text"} <= set(formats())
    assert all(len(words) > 20 for words in formats().values())


def test_an_unknown_format_is_refused_with_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean sharegpt"):
        load_format("sharedgpt")


def test_hh_rlhf_shares_turns_up_to_the_last() -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Well?\n\nAssistant:"
    kind, row = one("hh-rlhf", {"chosen": f"{start} Yes.", "rejected": f"{start} No."})
    assert kind == "preferences"
    assert [turn["content"] for turn in row["prompt"]] == ["Hi", "Hello", "Well?"]
    assert (row["chosen"], row["rejected"]) == ("Yes.", "No.")


def test_hh_rlhf_keeps_transcripts_that_part_early_for_validation_to_find() -> None:
    chosen = "\n\nHuman: Hi\n\nAssistant: A\n\nHuman: More\n\nAssistant: B"
    _, row = one("hh-rlhf", {"chosen": chosen, "rejected": "\n\nHuman: Hi\n\nAssistant: C"})
    assert row["prompt"] == "Hi"
    assert [turn["role"] for turn in row["chosen"]] == ["assistant", "user", "assistant"]


@pytest.mark.parametrize(
    "record",
    [{"chosen": "Hi", "rejected": "Ho"}, {"chosen": "\n\nHuman: a"}, ["x"], {"chosen": 1, "rejected": 2}],
)
def test_hh_rlhf_refuses_what_is_no_transcript(record: Any) -> None:
    with pytest.raises(ValueError):
        convert("hh-rlhf", record)


def test_open_assistant_compares_ranked_siblings_at_every_depth() -> None:
    def message(text: str, role: str, rank: int | None = None, replies: Any = ()) -> dict[str, Any]:
        return {"message_id": text, "text": text, "role": role, "rank": rank, "replies": list(replies)}

    follow = message("q2", "prompter", None, [message("a3", "assistant", 1), message("a4", "assistant", 0)])
    answers = [
        message("a1", "assistant", 0, [follow]),
        message("a2", "assistant", 1),
        message("a0", "assistant"),
    ]
    tree = {"message_tree_id": "t", "prompt": message("q1", "prompter", None, answers)}
    (_, first), (_, second) = convert("open-assistant", tree)
    assert (first["prompt"], first["completions"], first["ranks"]) == ("q1", ["a1", "a2"], [0, 1])
    assert first["meta"]["unranked"] == 1
    assert [turn["content"] for turn in second["prompt"]] == ["q1", "a1", "q2"]
    assert second["ranks"] == [1, 0]


def messages(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def test_trl_explicit_implicit_and_repeated_prompts_are_one() -> None:
    expected = {"prompt": "p", "chosen": "a", "rejected": "b"}
    for record in (
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": messages("p"), "chosen": messages("", "a")[1:], "rejected": messages("", "b")[1:]},
        {"chosen": messages("p", "a"), "rejected": messages("p", "b")},
        {"prompt": "p", "chosen": messages("p", "a"), "rejected": messages("p", "b")},
    ):
        assert one("trl", record) == ("preferences", expected)


def test_trl_implicit_text_is_cut_where_a_word_ends() -> None:
    _, row = one("trl", {"chosen": "The sky is blue.", "rejected": "The sky is black."})
    assert row == {"prompt": "The sky is", "chosen": "blue.", "rejected": "black."}


def test_trl_other_kinds_and_extras() -> None:
    assert one("trl", {"messages": messages("p", "a")}) == (
        "demonstrations",
        {"prompt": "p", "completion": "a"},
    )
    assert one("trl", {"prompt": "p", "completion": "a", "label": True})[0] == "unpaired"
    assert one("trl", {"prompt": "p"})[0] == "prompts"
    _, row = one("trl", {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 2, "score_chosen": 8})
    assert (row["margin"], row["meta"]) == (2, {"score_chosen": 8})


def test_sharegpt_pairs_demonstrations_and_odd_roles() -> None:
    turns = [{"from": "human", "value": "p"}]
    pair = {
        "conversations": turns,
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    }
    assert one("sharegpt", pair) == ("preferences", {"prompt": "p", "chosen": "a", "rejected": "b"})
    assert one("sharegpt", {"conversations": [*turns, {"from": "gpt", "value": "a"}]})[0] == "demonstrations"
    _, row = one("sharegpt", {"conversations": [*turns, {"from": "function_call", "value": "f()"}]})
    assert row["completion"] == [{"role": "function_call", "content": "f()"}]


def test_alpaca_and_its_relatives() -> None:
    record = {"instruction": "Add.", "input": "1 2", "output": "3"}
    assert one("alpaca", record) == ("demonstrations", {"prompt": "Add.\n\n1 2", "completion": "3"})
    dolly = {"instruction": "Add.", "context": "", "response": "3", "category": "maths"}
    assert one("alpaca", dolly)[1] == {"prompt": "Add.", "completion": "3", "meta": {"category": "maths"}}
    assert one("alpaca", {"instruction": "Add.", "chosen": "3", "rejected": "4"})[0] == "preferences"
    task = {
        "id": "t",
        "instruction": "Add.",
        "instances": [{"input": "1 1", "output": "2"}, {"input": "", "output": "0"}],
    }
    assert [row["prompt"] for _, row in convert("self-instruct", task)] == ["Add.\n\n1 1", "Add."]


def test_gsm8k_keeps_the_answer_to_check() -> None:
    _, row = one("gsm8k", {"question": "q", "answer": "1000+1\n#### 1,001"})
    assert row["meta"]["answer"] == "1001"


def test_ultrafeedback_ranks_by_score_and_ties() -> None:
    completions = [
        {"response": t, "overall_score": s, "model": t} for t, s in (("a", 5), ("b", "7.5"), ("c", 5.0))
    ]
    _, row = one("ultrafeedback", {"instruction": "p", "completions": completions})
    assert row["ranks"] == [1, 0, 1]
    assert row["meta"]["policies"] == ["a", "b", "c"]
    assert one("ultrafeedback", {"prompt": "p", "responses": ["a", "b"], "scores": [0.1, 0.9]})[1][
        "ranks"
    ] == [1, 0]
    with pytest.raises(ValueError, match="name its score"):
        convert("ultrafeedback", {"prompt": "p", "completions": [{"response": "a"}, {"response": "b"}]})


@pytest.mark.parametrize(
    ("judgments", "ranks"),
    [
        ([1, 1, 1, 1, 1, 1], [0, 1, 2, 3]),
        ([2, 2, 2, 2, 2, 2], [3, 2, 1, 0]),
        ([0, 0, 0, 0, 0, 0], [0, 0, 0, 0]),
        ([0, 1, 1, 1, 1, 0], [0, 0, 1, 1]),
    ],
)
def test_fine_grained_judgments_that_fit_one_ranking(judgments: list[int], ranks: list[int]) -> None:
    record = {"question": "q", "preference": judgments, **{f"prediction {i}": str(i) for i in range(1, 5)}}
    assert one("fine-grained-rlhf", record)[1]["ranks"] == ranks


def test_fine_grained_judgments_in_a_circle_stay_pairs() -> None:
    circle = [1, 2, 1, 1, 1, 1]  # 1 over 2, 3 over 1, 2 over 3
    record = {"question": "q", "preference": circle, **{f"prediction {i}": str(i) for i in range(1, 5)}}
    rows = [row for _, row in convert("fine-grained-rlhf", record)]
    assert len(rows) == 6
    assert (rows[1]["completions"], rows[1]["ranks"]) == (["1", "3"], [1, 0])


def test_table_columns_by_name() -> None:
    record = {"question": "p", "left": "a", "right": "b", "better": "right", "who": "r1", "note": "n"}
    columns = {"prompt": "question", "a": "left", "b": "right", "winner": "better", "rater": "who"}
    kind, row = one("table", record, **columns)
    assert (kind, row["ranks"], row["rater"], row["meta"]) == ("preferences", [1, 0], "r1", {"note": "n"})
    assert one("table", {**record, "better": "tie"}, **columns)[1]["ranks"] == [0, 0]
    assert one("table", {"prompt": "p", "completion": "a", "label": "0"})[1]["label"] is False
    with pytest.raises(ValueError, match="winner must say"):
        convert("table", {**record, "better": "both of them"}, **columns)
    with pytest.raises(ValueError, match="questoin is missing"):
        convert("table", record, prompt="questoin")


def test_native_rows_pass_as_they_are() -> None:
    ranked = {"prompt": "p", "completions": ["a", "b"], "ranks": [0, 0], "rater": "r"}
    assert one("native", ranked) == ("preferences", ranked)
    assert one("native", {"prompt": "p"}, kind="evaluation") == ("evaluation", {"prompt": "p"})
    with pytest.raises(ValueError, match="no kind"):
        convert("native", {"question": "p"})
