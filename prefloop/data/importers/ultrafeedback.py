"""Lists of scored completions, ranked by score (UltraFeedback; `{"prompt", "responses", "scores"}` too).

Option `score` names the completion's field that ranks it (default: overall_score, then fine-grained_score,
then score). Equal scores tie.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from prefloop.data.records import Row
from prefloop.data.transcripts import ranks_of, required, required_text, with_meta

KIND: Final = "preferences"
_SCORES: Final = ("overall_score", "fine-grained_score", "score")
_USED: Final = ("prompt", "instruction", "completions", "responses", "scores")


def convert(record: Any, options: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
    """Yields one ranked comparison, the scores kept in `meta.scores`."""
    prompt = required(record, "prompt" if "prompt" in record else "instruction")
    if "responses" in record:
        texts, scores = required(record, "responses"), required(record, "scores")
        if not isinstance(texts, list) or not isinstance(scores, list) or len(texts) != len(scores):
            raise ValueError("responses and scores must be lists of one length")
        policies: list[Any] = []
    else:
        completions = required(record, "completions")
        if not isinstance(completions, list):
            raise ValueError("completions must be a list")
        texts = [required_text(c, "response" if "response" in c else "text") for c in completions]
        scores = [_score(c, options.get("score")) for c in completions]
        policies = [c.get("model") for c in completions]
    numbers = [_number(score) for score in scores]
    if len(numbers) < 2:
        raise ValueError(f"nothing to compare: {len(numbers)} completion(s)")
    row = with_meta({"prompt": prompt, "completions": texts, "ranks": ranks_of(numbers)}, record, *_USED)
    row["meta"] = {
        **row.get("meta", {}),
        "scores": numbers,
        **({"policies": policies} if any(policies) else {}),
    }
    yield "preferences", row


def _score(completion: Mapping[str, Any], name: str | None) -> Any:
    if name:
        return required(completion, name)
    for known in _SCORES:
        if completion.get(known) is not None:
            return completion[known]
    raise ValueError(
        f"a completion has none of {', '.join(_SCORES)}: name its score with the option score=FIELD"
    )


def _number(score: Any) -> float:
    try:
        return float(score)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a score must be a number, got {score!r}") from error
