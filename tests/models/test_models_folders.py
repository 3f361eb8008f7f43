"""Model folders: what is written loads with transformers alone; what is no model is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    PreTrainedModel,
)

from prefloop.config.base import ArchitectureConfig
from prefloop.config.ppo import PPOConfig
from prefloop.data.batching import Batch
from prefloop.errors import ConfigError, DataError, ModelError
from prefloop.files import read_json
from prefloop.models.classifiers import score_head
from prefloop.models.creating import create_model
from prefloop.models.critic import Critic, make_critic
from prefloop.models.loading import load_policy, turn_dropout_off
from prefloop.models.reward_model import RewardModel
from prefloop.models.reward_normalisation import Normalisation
from prefloop.models.saving import save_model
from prefloop.models.shared_prompt import can_share
from tests import tiny

KINDS = ["llama", "qwen3", "gpt2", "gemma3_text", "mistral"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with a word-piece tokenizer of its own, which has no end token and no chat template."""
    folder = tmp_path_factory.mktemp("encoder") / "bert"
    letters = [chr(c) for c in range(33, 127)]
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{x}" for x in letters),
        "blue",
        "lamp",
    ]
    folder.mkdir()
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(words))
    tokens = BertTokenizer(str(vocabulary))
    tokens.model_max_length = 48
    shape = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=48,
    )
    BertForMaskedLM(shape).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_created_model_is_the_same_after_a_round_trip(kind: str, tmp_path: Path) -> None:
    tokens = tiny.tokenizer()
    made = tiny.model(tokens, kind=kind)
    save_model(made, tokens, tmp_path / "m", {"What it is": "a test"})
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    own, own_tokens = load_policy(tmp_path / "m")
    ids = torch.tensor([tokens("What colour is the lamp?")["input_ids"]])
    with torch.no_grad():
        # The norms of transformers round otherwise, and a product may by where its matrices lie.
        torch.testing.assert_close(made(ids).logits, plain(ids).logits, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(made(ids).logits, own(ids).logits, rtol=1e-5, atol=1e-6)
    assert all(map(torch.equal, made.state_dict().values(), own.state_dict().values()))
    again = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert again.chat_template == own_tokens.chat_template == tokens.chat_template
    assert again.pad_token_id == tokens.pad_token_id != again.eos_token_id
    assert (tmp_path / "m" / "README.md").read_text().startswith("---\nlibrary_name: transformers")


def test_the_same_seed_makes_the_same_folder(tmp_path: Path) -> None:
    for name in ("one", "other"):
        tiny.saved(tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "other").iterdir())
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(ConfigError, match="'lama' is unknown to transformers"):
        create_model(ArchitectureConfig(model_type="lama", vocab_size=320), tiny.tokenizer(), 0)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no model folder: it has no config\.json"):
        load_policy(tmp_path / "empty")
    with pytest.raises(ModelError, match="does not exist"):
        load_policy(tmp_path / "nowhere")


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    folder = tiny.saved(tmp_path / "m")
    weights = load_policy(folder)[0].state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="could not be loaded") as caught:
        load_policy(folder)
    assert "safetensors" in caught.value.remedy
    with pytest.raises(ModelError, match="could not be loaded"):
        RewardModel.create(folder, seed=0)


@pytest.mark.parametrize("damage", ["truncated", "config", "tokenizer"])
def test_a_damaged_folder_is_refused(damage: str, tmp_path: Path) -> None:
    folder = tiny.saved(tmp_path / "m")
    if damage == "truncated":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:2000])
    elif damage == "config":
        (folder / "config.json").write_text("{")
    else:
        (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="could not be loaded"):
        load_policy(folder)


def test_an_incomplete_model_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny.saved(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights of its architecture, model\.norm\.weight"):
        load_policy(folder)


def test_random_weights_keep_the_shape_alone(tmp_path: Path) -> None:
    folder = tiny.saved(tmp_path / "m", width=32)
    model, _ = load_policy(folder, random_weights=True)
    kept, _ = load_policy(folder)
    assert model.config.hidden_size == 32
    assert not torch.equal(model.get_input_embeddings().weight, kept.get_input_embeddings().weight)


def test_dropout_is_off_even_where_the_configuration_sets_it(tmp_path: Path) -> None:
    folder = tiny.saved(tmp_path / "m", kind="gpt2")
    config = (folder / "config.json").read_text().replace('pdrop": 0.0', 'pdrop": 0.5')
    assert "0.5" in config
    (folder / "config.json").write_text(config)
    model, tokens = load_policy(folder)
    model.train()
    ids = torch.tensor([tokens("The lamp is red.")["input_ids"]])
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_noise_of_routers_is_off() -> None:
    config = AutoConfig.for_model(
        "mixtral",
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
        router_jitter_noise=0.5,
    )
    model = AutoModelForCausalLM.from_config(config).train()
    ids = torch.tensor([[1, 2, 3, 4]])
    assert not torch.equal(model(ids).logits, model(ids).logits)
    turn_dropout_off(model)
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_a_reward_model_is_saved_with_its_normalisation(tmp_path: Path) -> None:
    model = RewardModel.create(tiny.saved(tmp_path / "trunk"), seed=0).eval()
    raw = model.score(tiny.QUESTIONS, ["Blue."] * 6)
    model.normalisation = Normalisation(mean=0.5, std=2.0)
    model.save(tmp_path / "reward")
    again = RewardModel.load(tmp_path / "reward")
    assert again.normalisation == model.normalisation
    # A single model's file is what it was before there were ensembles.
    assert read_json(tmp_path / "reward" / "reward_normalisation.json") == {"mean": 0.5, "std": 2.0}
    torch.testing.assert_close(again.score(tiny.QUESTIONS, ["Blue."] * 6), (raw - 0.5) / 2)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    ids = torch.tensor([again.encode(tiny.QUESTIONS[0], "Blue.")])
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits[0], raw[:1])
    (tmp_path / "reward" / "reward_normalisation.json").unlink()
    with pytest.raises(DataError, match="is missing"):
        RewardModel.load(tmp_path / "reward")


def test_a_policy_is_no_reward_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"lacks 1 weights of its architecture, score\.weight"):
        RewardModel.load(tiny.saved(tmp_path / "policy"))


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_read_at_the_last_real_token(kind: str, tmp_path: Path) -> None:
    model = RewardModel.create(tiny.saved(tmp_path / "trunk", kind=kind), seed=0).eval()
    assert not model.encoder_only
    answers = ["Blue.", "The kettle is blue, I think, and the lamp is red.", "I cannot help with that.", ""]
    together = model.score([tiny.QUESTIONS[0]] * 4, answers)
    for i, answer in enumerate(answers):
        sequence = model.encode(tiny.QUESTIONS[0], answer)
        assert sequence[-1] == model.tokenizer.eos_token_id
        torch.testing.assert_close(
            model.score([tiny.QUESTIONS[0]], [answer])[0], together[i], atol=1e-5, rtol=0
        )
        with torch.no_grad():
            hidden = model.model.base_model(torch.tensor([sequence])).last_hidden_state[0, -1]
            torch.testing.assert_close(score_head(model.model)(hidden)[0], together[i], atol=1e-5, rtol=0)


def test_the_head_starts_small_and_from_its_seed(tmp_path: Path) -> None:
    trunk = tiny.saved(tmp_path / "trunk", width=64)
    heads = [score_head(RewardModel.create(trunk, seed=seed).model).weight for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert heads[0].std().item() == pytest.approx(1 / 65**0.5, rel=0.35)


def test_a_long_conversation_loses_its_beginning(tmp_path: Path) -> None:
    model = RewardModel.create(tiny.saved(tmp_path / "trunk"), seed=0)
    ids = model.encode("The lamp is red. " * 30, "Blue.", 20)
    assert len(ids) == 20
    assert model.tokenizer.decode(ids).endswith("<|assistant|>Blue.<|end|>")


def test_an_encoder_scores_with_its_own_tokenizer(encoder: Path, tmp_path: Path) -> None:
    model = RewardModel.create(encoder, seed=0).eval()
    assert model.encoder_only
    ids = model.encode("What colour?", "Blue.")
    assert model.tokenizer.convert_ids_to_tokens([ids[0], ids[-1]]) == ["[CLS]", "[SEP]"]
    long = model.encode("The lamp. " * 50, "It is blue.")
    assert len(long) == 48
    assert model.tokenizer.convert_ids_to_tokens(long)[0] == "[CLS]"
    answers = ["Blue.", "It is a lamp, and it is blue."]
    scores = model.score(["What colour?"] * 2, answers)
    for i, answer in enumerate(answers):
        torch.testing.assert_close(model.score(["What colour?"], [answer])[0], scores[i], atol=1e-5, rtol=0)
    model.save(tmp_path / "reward")
    torch.testing.assert_close(
        RewardModel.load(tmp_path / "reward").score(["What colour?"] * 2, answers), scores
    )
    same = RewardModel.create(encoder, seed=0).eval().score(["What colour?"] * 2, answers)
    assert torch.equal(same, scores)


def test_an_encoder_has_members_and_shares_no_prompt(encoder: Path, tmp_path: Path) -> None:
    model = RewardModel.create(encoder, seed=0, heads=2).eval()
    assert not can_share(model.model, int(model.tokenizer.pad_token_id))
    raw = model.raw(["What colour?"] * 2, ["Blue.", "It is a lamp, and it is blue."])
    alone = RewardModel.create(encoder, seed=0).eval().raw(["What colour?"], ["Blue."])
    torch.testing.assert_close(raw[0, 0], alone[0, 0], atol=1e-5, rtol=0)
    model.save(tmp_path / "reward")
    again = RewardModel.load(tmp_path / "reward")
    assert again.members == 2
    torch.testing.assert_close(again.raw(["What colour?"], ["Blue."])[0], raw[0], atol=1e-5, rtol=0)


def test_an_encoder_is_no_policy(encoder: Path) -> None:
    with pytest.raises(ModelError, match="no causal language model"):
        load_policy(encoder)


def critics(tmp_path: Path, **config: object) -> tuple[Critic, PreTrainedModel]:
    tokens = tiny.tokenizer()
    policy = tiny.model(tokens, width=16)
    reward_model = RewardModel.create(tiny.saved(tmp_path / "trunk", width=32), seed=0).eval()
    return make_critic(PPOConfig(steps=1, **config), policy, reward_model, tokens), policy  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "width"),
    [({}, 32), ({"critic_base": "sft"}, 16), ({"critic": "shared"}, 16)],
)
def test_a_critic_gives_a_value_for_the_state_before_each_token(
    config: dict[str, object], width: int, tmp_path: Path
) -> None:
    critic, policy = critics(tmp_path, **config)
    assert critic.head.in_features == width
    assert (critic.trunk is None) == (config.get("critic") == "shared")
    ids = torch.tensor([[7, 8, 9, 10], [11, 12, 13, 4]])
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    wanted = torch.tensor([[False, True, True, True], [False, False, True, False]])
    hidden = (
        policy.base_model(ids, attention_mask=mask.long()).last_hidden_state if critic.trunk is None else None
    )
    values = critic(Batch(ids, mask, wanted), hidden)
    assert values.shape == (2, 4)
    assert not values.any()
    with torch.no_grad():
        critic.head.weight.fill_(1.0)
    values = critic(Batch(ids, mask, wanted), hidden)
    assert torch.equal(values != 0, wanted)
    # The value of a state does not see the token that is chosen in it.
    other = ids.clone()
    other[0, 3] = 20
    hidden = (
        policy.base_model(other, attention_mask=mask.long()).last_hidden_state
        if critic.trunk is None
        else None
    )
    torch.testing.assert_close(critic(Batch(other, mask, wanted), hidden)[0], values[0])
    assert not torch.equal(values[0, 1:], torch.zeros(3))


def test_a_critic_leaves_its_source_alone(tmp_path: Path) -> None:
    critic, policy = critics(tmp_path, critic_base="sft")
    assert critic.trunk is not None
    own = {id(p) for p in critic.parameters()}
    assert not own & {id(p) for p in policy.parameters()}


def test_an_encoders_tokens_are_not_the_policys(encoder: Path) -> None:
    tokens = tiny.tokenizer()
    policy = tiny.model(tokens, width=16)
    critic = make_critic(PPOConfig(steps=1), policy, RewardModel.create(encoder, seed=0), tokens)
    assert critic.trunk is not None
    assert critic.trunk.config.model_type == "llama"
