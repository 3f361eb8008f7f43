"""PPO-ptx: demonstrations beside the reward, so that what they taught is not unlearned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.on_policy import OnPolicyConfig
from prefloop.data.batching import chunks, collate
from prefloop.data.templates import Encoded
from prefloop.models.forward import precision_context, token_logprobs
from prefloop.objectives.sft import sft_loss
from prefloop.training.distribution import ranks
from prefloop.training.loop import Part


def demonstrate(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Encoded],
    config: OnPolicyConfig,
    precision: str,
    micro_batch_size: int,
) -> Iterator[Part]:
    """`ptx_coef` times the rows' NLL (Ouyang et al. 2022, eq. 2), beside the policy's own loss.

    The figure `ptx_loss` is the NLL a token (nats); of several processes each gives what its share adds.
    """
    device = policy.device.type
    total = sum(sum(row.trainable) for row in rows)
    for group in chunks(ranks().share(range(len(rows))), micro_batch_size):
        batch = collate([rows[i] for i in group], tokenizer).to(device)
        with precision_context(precision, device):
            logprobs, _ = token_logprobs(policy, batch.input_ids, batch.attention_mask, batch.wanted)
        loss = sft_loss(logprobs, batch.wanted, total)
        yield Part(config.ptx_coef * loss, {"ptx_loss": loss.detach()})
