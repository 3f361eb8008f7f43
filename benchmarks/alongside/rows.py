"""The comparisons that benchmarks/parity.py makes: what each side is told, and why where they differ."""

from __future__ import annotations

from typing import Any

from benchmarks.alongside.table import Row

HALVES: dict[str, Any] = {"micro_batch_size": 4}
NLL: dict[str, Any] = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
APART: dict[str, Any] = {"centering": 0.0, "share_prompt": "off"}
SIMPO: dict[str, Any] = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0}

OFFLINE = (
    Row("sft", "sft"),
    Row("sft, accumulation 2", "sft", HALVES),
    Row("dpo", "dpo", {"share_prompt": "off"}),
    Row("dpo, accumulation 2", "dpo", {**HALVES, "share_prompt": "off"}),
    Row(
        "dpo, a prompt encoded once for both",
        "dpo",
        {"share_prompt": "on"},
        why="docs/dpo.md: `share_prompt`; TRL encodes it twice",
    ),
    Row(
        "dpo, cDPO at 0.1",
        "dpo",
        {"label_smoothing": 0.1},
        {"loss_type": ["robust"], "label_smoothing": -0.1 / (1 - 2 * 0.1)},
        why="TRL's `robust` at -e / (1 - 2e) is cDPO at e",
    ),
    Row(
        "dpo, cDPO at 0.1, TRL's `sigmoid`",
        "dpo",
        {"label_smoothing": 0.1},
        {"loss_type": ["sigmoid"], "label_smoothing": 0.1},
        differs="all",
        why="TRL's `sigmoid` passes over label_smoothing; docs/dpo.md: with `sigmoid` it is cDPO",
    ),
    Row(
        "dpo, robust at 0.1",
        "dpo",
        {"loss": "robust", "label_smoothing": 0.1},
        {"loss_type": ["robust"], "label_smoothing": 0.1},
    ),
    Row("dpo, ipo, means a token", "dpo", {"loss": "ipo", "ipo_logprobs": "mean"}, {"loss_type": ["ipo"]}),
    Row(
        "dpo, ipo, sums (default)",
        "dpo",
        {"loss": "ipo"},
        {"loss_type": ["ipo"]},
        differs="all",
        why="docs/dpo.md: the paper's y is a whole completion; TRL has means a token alone",
    ),
    Row("dpo, hinge", "dpo", {"loss": "hinge"}, {"loss_type": ["hinge"]}),
    Row(
        "dpo + 0.5 NLL, a pair a micro-batch",
        "dpo",
        {"nll_coef": 0.5, "micro_batch_size": 1},
        NLL,
        why="where TRL's mean over a micro-batch's tokens is one completion's",
    ),
    Row(
        "dpo + 0.5 NLL, micro-batches of 8",
        "dpo",
        {"nll_coef": 0.5},
        NLL,
        differs="all",
        why="docs/dpo.md: NLL of each chosen completion a token, then the mean over pairs (Pang et al. "
        "2024); TRL's is a mean over a micro-batch's tokens, so its size changes the loss",
    ),
    Row(
        "orpo",
        "orpo",
        {"odds_coef": 0.5},
        {"beta": 0.5},
        differs="all",
        why="docs/orpo.md: the likelihood is the chosen completion's, a token; TRL's is the prompt's as well",
    ),
    Row(
        "orpo, TRL's likelihood without the prompt",
        "orpo",
        {"odds_coef": 0.5},
        {"beta": 0.5},
        options=("completion_nll",),
        why="that was the whole difference",
    ),
    Row("simpo", "simpo", {}, SIMPO),
    Row("simpo, accumulation 2", "simpo", HALVES, SIMPO),
    Row("reward", "reward", APART),
    Row("reward, accumulation 2", "reward", {**APART, **HALVES}),
    Row("reward, margins", "reward", APART, options=("margins",)),
    Row("reward, centering 0.01", "reward", {"centering": 0.01}, {"center_rewards_coefficient": 0.01}),
    Row(
        "reward, a prompt encoded once for both",
        "reward",
        {**APART, "share_prompt": "on"},
        why="docs/reward.md: `share_prompt`; TRL encodes it twice",
    ),
    Row("kto", "kto"),
    Row("kto, undesirable weight 1.5", "kto", {"undesirable_weight": 1.5}, {"undesirable_weight": 1.5}),
    Row(
        "kto, accumulation 2",
        "kto",
        HALVES,
        differs="all",
        why="docs/kto.md: z0 belongs to the whole step, however it is cut; TRL takes one a micro-batch",
    ),
)

SCALE = 1e-2
"""Policy-gradient losses are sums of terms of size 1 that cancel."""

GRPO: dict[str, Any] = {"loss_type": "grpo", "scale_rewards": "group", "use_bias_correction_kl": False}
ONCE: dict[str, Any] = {"inner_epochs": 1}
SURROGATE = "docs/rloo.md: ratios of tokens, TRL's are of completions; at ratio 1 both have one gradient"

GROUPS = (
    Row("grpo", "grpo", {}, GRPO, scale=SCALE),
    Row("grpo, accumulation 2", "grpo", {"micro_batch_size": 8}, GRPO, scale=SCALE),
    Row("grpo, 2 minibatches", "grpo", {**ONCE, "minibatches": 2}, GRPO, scale=SCALE),
    Row("grpo, temperature 0.7", "grpo", {"temperature": 0.7}, GRPO, scale=SCALE),
    Row("grpo, without a KL", "grpo", {"kl_coef": 0.0}, GRPO, scale=SCALE),
    Row(
        "grpo, ratios clipped to 0.99 and 1.02",
        "grpo",
        {"clip_range_low": 0.01, "clip_range_high": 0.02},
        {**GRPO, "epsilon": 0.01, "epsilon_high": 0.02},
        why="narrow, so that both clips act",
        scale=SCALE,
    ),
    Row(
        "grpo, mean over tokens (DAPO)",
        "grpo",
        {"normaliser": "tokens"},
        {**GRPO, "loss_type": "dapo"},
        scale=SCALE,
    ),
    Row(
        "grpo, mean over tokens (BNPO)",
        "grpo",
        {"normaliser": "tokens"},
        {**GRPO, "loss_type": "bnpo"},
        scale=SCALE,
    ),
    Row(
        "grpo, a constant, no std (Dr. GRPO)",
        "grpo",
        {"normaliser": "constant", "scale_rewards": "none"},
        {**GRPO, "loss_type": "dr_grpo", "scale_rewards": "none"},
        scale=SCALE,
    ),
    Row(
        "grpo, std of the batch",
        "grpo",
        {"scale_rewards": "batch"},
        {**GRPO, "scale_rewards": "batch"},
        scale=SCALE,
    ),
    Row(
        "grpo, TRL's default KL",
        "grpo",
        {},
        {**GRPO, "use_bias_correction_kl": True},
        differs="all",
        why="TRL multiplies k3 by the ratio, which adds to its gradient; docs/grpo.md: k3 a token is the "
        "paper's (Shao et al. 2024, eq. 4), and `kl_in: reward` has the KL's gradient",
        scale=SCALE,
    ),
    Row("rloo", "rloo", ONCE, differs="loss", why=SURROGATE, scale=SCALE),
    Row(
        "rloo, accumulation 2",
        "rloo",
        {**ONCE, "micro_batch_size": 8},
        differs="loss",
        why=SURROGATE,
        scale=SCALE,
    ),
    Row(
        "rloo, 2 updates a batch",
        "rloo",
        differs="all",
        why="docs/rloo.md: ratios of tokens, TRL's are of completions, and here they have left 1; by default "
        "a batch is used once, as in the paper",
        scale=SCALE,
    ),
)

TWICE: dict[str, Any] = {"minibatches": 2, "max_grad_norm": 0.0, "clip_range": 0.02, "value_clip_range": 0.02}
AT_END = ("score_at_end",)

PPO = (
    Row(
        "ppo, completions of one length",
        "ppo",
        TWICE,
        options=("one_length",),
        why="TRL as it is: no pad follows the end",
        scale=SCALE,
    ),
    Row(
        "ppo, one length, accumulation 2",
        "ppo",
        {**TWICE, "minibatches": 1, "micro_batch_size": 8},
        options=("one_length",),
        why="TRL as it is",
        scale=SCALE,
    ),
    Row(
        "ppo",
        "ppo",
        TWICE,
        differs="all",
        why="docs/ppo.md: the score comes once, at the last real token, and no value follows; TRL puts it at "
        "the pad after that, and learns and bootstraps that pad's value",
        scale=SCALE,
    ),
    Row(
        "ppo, TRL's end moved",
        "ppo",
        TWICE,
        options=AT_END,
        why="one line of TRL's loop changed (peers/trl_ppo.py): that was the whole difference",
        scale=SCALE,
    ),
    Row(
        "ppo, end moved, rewards whitened",
        "ppo",
        {**TWICE, "whiten_rewards": True},
        options=AT_END,
        scale=SCALE,
    ),
    Row("ppo, end moved, temperature 0.7", "ppo", {**TWICE, "temperature": 0.7}, options=AT_END, scale=SCALE),
    Row("ppo, end moved, discount 0.9", "ppo", {**TWICE, "gamma": 0.9}, options=AT_END, scale=SCALE),
)

ROWS = (*OFFLINE, *GROUPS, *PPO)
