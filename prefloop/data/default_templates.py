"""The chat template of a tokenizer that comes without one, and the tokens that mark who speaks."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

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


def is_own(template: str) -> bool:
    """True for the templates above, with which most models that prefloop made come back."""
    return template.replace("{{ bos_token }}", "") in (ROLE_TEMPLATE, PLAIN_TEMPLATE)


def ensure_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Gives a tokenizer that has no chat template a default one; True if it did.

    Where the tokenizer itself opens a text with a begin token, so does the template: such models have seen no
    text without it. (Rendered conversations are tokenised without the tokenizer's own additions.)
    """
    if tokenizer.chat_template:
        return False
    known = tokenizer.get_vocab()
    template = ROLE_TEMPLATE if USER in known and ASSISTANT in known else PLAIN_TEMPLATE
    # An encoder's class token is put there by whoever encodes for it.
    if tokenizer.bos_token_id is not None and tokenizer.cls_token_id is None:
        opening = tokenizer("text")["input_ids"][:1]
        template = "{{ bos_token }}" * (opening == [tokenizer.bos_token_id]) + template
    tokenizer.chat_template = template
    return True
