"""Chat templates that mean harm: code in them reaches nothing, and what does not end is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prefloop.data.template_trial import try_template
from prefloop.errors import ModelError

GOOD = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}\n{% endfor %}"
ESCAPES = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('touch ran') }}",
    "own globals": "{{ raise_exception.__globals__['json'] }}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "format map": "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "attribute filter": "{{ messages | attr('__class__') }}",
    "changing messages": "{{ messages.append(1) }}",
    "import": "{% import '/etc/passwd' as x %}{{ x }}",
    "include": "{% include '/etc/passwd' %}",
    "self": "{{ self.__init__.__globals__ }}",
    "generator frames": "{{ (messages | map('upper')).gi_frame.f_globals }}",
}
ENDLESS = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a power": "{{ 9 ** (9 ** 9) }}",
}
GROWING = {
    "a product": "{{ ('x' * 99999999999) | length }}",
    "doubling": "{% set n = namespace(x='xx') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}"
    "{% endfor %}",
    "writing": "{% for a in range(9999) %}{{ 'x' * 9999 }}{% endfor %}",
    "padding": "{{ '%99999999999d' % 1 }}",
    "a giant range": "{{ range(999999999) | list | length }}",
    "itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
}


@pytest.mark.parametrize("name", GROWING)
def test_a_template_that_grows_without_end_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="grows without end") as caught:
        try_template(GOOD + GROWING[name], "models/x")
    assert "chat_template.jinja" in caught.value.remedy


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_does_not_end_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"models/x does not end within 5 s"):
        try_template(GOOD + ENDLESS[name], "models/x")


def test_one_that_waits_for_a_long_conversation_is_refused() -> None:
    trap = "{% if messages | length > 30 %}" + ENDLESS["loops in loops"] + "{% endif %}"
    with pytest.raises(ModelError, match="does not end"):
        try_template(GOOD + trap, "models/x")


@pytest.mark.parametrize(
    "template",
    [
        GOOD,
        "{% generation %}{{ messages[0].content }}{% endgeneration %}{{ strftime_now('%Y') }}",
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('') }}{% endif %}{% endfor %}",
        "{% for m in messages %}{% if loop.index > 3 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}",
    ],
)
def test_templates_as_models_have_them_are_used(template: str) -> None:
    try_template(template, "models/x")


@pytest.mark.parametrize("name", ESCAPES)
def test_code_in_a_template_reaches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from prefloop.data.templates import render
    from tests import tiny

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = ESCAPES[name]
    messages = [{"role": "user", "content": "hello"}]
    try:
        text = render(tokenizer, messages)
    except ModelError:
        text = ""
    assert not any(word in text for word in ("class", "module", "root:", "hf_secret", "built-in"))
    assert messages == [{"role": "user", "content": "hello"}]
    assert not os.listdir(tmp_path)


def test_what_gets_past_the_trial_ends_in_words(tmp_path: Path) -> None:
    from prefloop.data.templates import render
    from tests import tiny

    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{{ range(999999999) | list }}"
    with pytest.raises(ModelError, match="grows without end"):
        render(tokenizer, [{"role": "user", "content": "hello"}])


def test_a_model_is_not_loaded_with_a_template_that_does_not_end(tmp_path: Path) -> None:
    from prefloop.models.loading import load_tokenizer
    from tests import tiny

    folder = tiny.saved(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(GOOD + ENDLESS["loops in loops"])
    with pytest.raises(ModelError, match="does not end"):
        load_tokenizer(str(folder))
