"""Tokenizers of the kinds that models come with, and chat templates in the style of their families.

Made here from a few sentences: what differs between them is how they split, where they put spaces, what they
do with bytes they do not know, and which tokens end an answer.
"""

from __future__ import annotations

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny import ANSWERS, QUESTIONS, TEXTS

CORPUS = [*TEXTS, *QUESTIONS, *ANSWERS, "user", "assistant", "model", "system", "[INST] [/INST]"] * 4
LETTERS = [chr(c) for c in range(33, 127)]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_WITH_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are kind.<|im_end|>\n{% endif %}"
    + CHATML
)
# Drops the reasoning of all answers but the last, which it opens with a block of it.
REASONING = (
    "{% for m in messages %}"
    "{% set parts = m['content'].split('</think>') %}{% set said = parts[-1].lstrip('\n') %}"
    "<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}"
    "<think>\n{{ parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' }}\n</think>\n\n"
    "{% endif %}{{ said }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
TURNS = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "<start_of_turn>{{ role }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# The system prompt stands in the last question: an earlier turn is rendered otherwise while it is the last.
INST = (
    "{% set system = messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' %}"
    "{% set talk = messages[1:] if system else messages %}{{ bos_token }}"
    "{% for m in talk %}{% if m['role'] == 'user' %}"
    "{% set last = loop.last or loop.index0 + 2 == talk | length %}"
    "[INST] {{ system if last else '' }}{{ m['content'] }}[/INST]"
    "{% else %} {{ m['content'] | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)


def _fast(core: Tokenizer, template: str | None, **tokens: object) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **tokens)
    fast.chat_template = template
    return fast


def byte_level(
    template: str | None = CHATML,
    *,
    eos: str = "<|endoftext|>",
    extra: tuple[str, ...] = ("<|im_start|>", "<|im_end|>"),
    bos: str | None = None,
    pad: str | None = None,
    adds_bos: bool = False,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2, Llama 3 and Qwen have it; by default without pad and begin tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = [token for token in (bos, eos) if token] + list(extra)
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=list(dict.fromkeys(special)),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(str(bos), core.token_to_id(str(bos)))]
        )
    return _fast(core, template, eos_token=eos, bos_token=bos, pad_token=pad)


def sentencepiece_bpe(template: str | None = INST) -> PreTrainedTokenizerFast:
    """BPE that marks spaces, opens every text with one and falls back to bytes, as Llama 2 and Mistral do."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"]
    whole = [*special, *(f"<0x{value:02X}>" for value in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=430, special_tokens=whole, show_progress=False)
    core.train_from_iterator([*CORPUS, *LETTERS], trainer)
    state = json.loads(core.to_str())
    # The bytes stay in the vocabulary, as ordinary tokens.
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    core = Tokenizer.from_str(json.dumps(state))
    return _fast(core, template, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram(template: str | None = TURNS) -> PreTrainedTokenizerFast:
    """A unigram model that marks spaces and adds a begin token itself, as SentencePiece's often do."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace()
    special = ["<unk>", "<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=140, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator([*CORPUS, *LETTERS, *("a\nb\n\nc" for _ in range(4))], trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", core.token_to_id("<bos>"))]
    )
    return _fast(core, template, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>")


def wordpiece(template: str | None = None) -> PreTrainedTokenizerFast:
    """Lower-cased word pieces between a class token and a separator, as encoders have them."""
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    core.train_from_iterator([*CORPUS, *LETTERS], trainer)
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokens = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return _fast(core, template, model_max_length=64, **tokens)


def words(template: str, vocabulary: list[str], **tokens: object) -> PreTrainedTokenizerFast:
    """A token a word, so that a mask can be written by hand; the special tokens given are whole."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens([str(token) for token in tokens.values()])
    return _fast(core, template, unk_token="?", **tokens)
