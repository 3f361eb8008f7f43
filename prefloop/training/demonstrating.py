"""PPO-ptx: demonstrations beside the reward, so that what they taught is not unlearned."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.on_policy import OnPolicyConfig
from prefloop.data.batching import chunks, collate
from prefloop.data.templates import Encoded
from prefloop.models.forward import precision_context, token_logprobs
from prefloop.objectives.sft import sft_loss
from prefloop.training.distribution import ranks
from prefloop.training.lockstep import backward


def demonstrate(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Encoded],
    config: OnPolicyConfig,
    precision: str,
) -> float:
    """Adds `ptx_coef` times the gradient of the rows' NLL (Ouyang et al. 2022, eq. 2) to the policy's own.

    Returns:
        The NLL a token (nats); of several processes each gives what its share adds to it.
    """
    device = policy.device.type
    total = sum(sum(row.trainable) for row in rows)
    loss_sum = 0.0
    for group in chunks(ranks().share(range(len(rows))), config.micro_batch_size):
        batch = collate([rows[i] for i in group], tokenizer).to(device)
        with precision_context(precision, device):
            logprobs, _ = token_logprobs(policy, batch.input_ids, batch.attention_mask, batch.wanted)
        loss = sft_loss(logprobs, batch.wanted, total)
        backward(config.ptx_coef * loss)
        loss_sum += float(loss.detach())
    return loss_sum
