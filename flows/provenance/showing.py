"""A trace in words, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SHORT = 12


def trace_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines of `prefloop trace MODEL`."""
    model = found["model"]
    earlier = "" if model["current"] else "  (an earlier one: the workspace has another by now)"
    yield f"model        {model['path']}  {model['hash']}{earlier}"
    yield f"stage        {found['stage']}  key {_short(found['key'])}"
    if found["run"]:
        when = f"{found['start']} to {found['end']}"
        yield f"run          {found['run']} of {found['pipeline'] or 'no pipeline run'}, {when}"
    else:
        yield "run          its record is not here: dvc fetch brings it"
    yield f"commit       {_commit(found)}"
    yield f"code         {found['code'] or 'not recorded'}"
    yield f"environment  {found['environment_fingerprint'] or 'not recorded'}"
    yield from (f"             {key}: {value}" for key, value in found["environment"].items())
    yield from _parameters(found)
    yield "data"
    yield from (f"  {row['path']}  {row['hash']}  {_rows(row['rows'])}" for row in found["data"])
    if not found["data"]:
        yield "  none"
    yield "made from, nearest first"
    for other in found["ancestors"]:
        from_ = ", ".join(other["parents"]) or "nothing that a stage made"
        yield f"  {other['stage']} <- {from_}"
        yield f"    key {_short(other['key'])}  run {other['run'] or 'not here'}  commit {_commit(other)}"
        for path, digest in other["writes"].items():
            if not path.startswith("data/raw/"):
                yield f"    {path}  {digest}"
        if "imports" in other:
            imports = ", ".join(other["imports"] or []) or "none"
            yield f"    data/sources  {other['reads'].get('data/sources', '')}  imports: {imports}"
    if not found["ancestors"]:
        yield "  nothing that a stage made"
    yield from (f"  {path}: nothing here remembers what made it" for path in found["forgotten"])
    yield "evaluations"
    for evaluation in found["evaluations"]:
        run = evaluation["run"] or "not here"
        yield f"  {evaluation['stage']}  key {_short(evaluation['key'])}  run {run}"
        yield from (f"    {name}: {_figure(value)}" for name, value in evaluation["figures"].items())
    if not found["evaluations"]:
        yield "  none"


def _parameters(found: Mapping[str, Any]) -> Iterator[str]:
    changed = found["changed_parameters"]
    if changed is None:
        yield "parameters   (params.yaml of the commit cannot be read: all of the section)"
        changed = found["parameters"]
    elif changed:
        yield f"parameters   that differ from params.yaml in the commit (of {len(found['parameters'])})"
    else:
        yield f"parameters   those of params.yaml in the commit, all {len(found['parameters'])}"
    yield from (f"  {key}: {value}" for key, value in changed.items())


def _short(key: str | None) -> str:
    return key[:SHORT] if key else "not here"


def _commit(found: Mapping[str, Any]) -> str:
    if not found["git_commit"]:
        return "not recorded"
    return str(found["git_commit"])[:SHORT] + (" and uncommitted changes" if found["git_dirty"] else "")


def _rows(count: int | None) -> str:
    return "rows no longer here" if count is None else f"{count:,} rows"


def _figure(value: Mapping[str, Any]) -> str:
    mean, interval = value.get("mean"), value.get("ci95")
    text = "-" if mean is None else f"{mean:.4g}"
    return f"{text} [{interval[0]:.4g}, {interval[1]:.4g}]" if interval and None not in interval else text


def seen_lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """The lines of `prefloop trace --row`."""
    for row in answer["rows"]:
        yield f"row {row['id']}"
        yield from (f"  in {place['file']}, line {place['line']}" for place in row["places"])
        if row["made_from_it"]:
            yield f"  rows made from it have the ids {', '.join(row['made_from_it'])}"
        for title, said in (("seen by", True), ("cannot be told of", None), ("not seen by", False)):
            models = [model for model in row["models"] if model["seen"] is said]
            yield f"  {title}" + ("" if models else ": none")
            yield from (f"    {_model(model)}" for model in models)
    if answer["registered_and_forgotten"]:
        yield "registered versions of which nothing here remembers what made them:"
        yield from (f"  {version}" for version in answer["registered_and_forgotten"])
    if answer["registry"] != "asked":
        yield f"the registry could not be asked: {answer['registry']}"


def _model(model: Mapping[str, Any]) -> str:
    whose = model["path"] if model["current"] else f"{model['path']} as it was"
    registered = f" [{', '.join(model['registered'])}]" if model["registered"] else ""
    how = [model["why"]] if model["why"] else []
    how += [f"through {', '.join(model['through'])}"] if model["through"] else []
    return f"{whose} (key {_short(model['key'])}){registered}: {'; '.join(how)}"


def rebuilt_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines of `prefloop rebuild`."""
    equal = "equal" if found["fingerprints_equal"] else "differ"
    if found["identical"]:
        yield f"{found['model']}: byte-identical (commit {found['commit'][:SHORT]}, fingerprints {equal})"
    else:
        yield f"{found['model']}: not the same (commit {found['commit'][:SHORT]}, fingerprints {equal})"
        yield from (f"  {name}: {word}" for name, word in found["differs"].items())
        yield (
            f"  the first to differ is what {found['first']} wrote"
            if found["first"]
            else "  nothing else differs"
        )
    for key, (then, now) in sorted(found["environment"].items()):
        yield f"  environment, {key}: {then} -> {now}"
    for stage, files in found["code"].items():
        yield f"  code of {stage}: not what made it ({', '.join(files[:5]) or 'not recorded'})"
    yield from (f"  changed on the disk since it was made: {file}" for file in found["damaged"])
