"""vLLM as the engine that samples: in the trainer's process and on its GPU (the extra `vllm`).

Written against what vLLM 0.22.1 and 0.33.0 declare alike. It is imported when an engine is made, and never
otherwise.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.rollout import SamplingConfig
from prefloop.data.templates import Messages
from prefloop.errors import ConfigError, TrainingError
from prefloop.models.adapters import plain
from prefloop.models.checkpoint_weights import checkpoint_weights
from prefloop.models.loading import context_length, first_line
from prefloop.rollout.sampling import Rollouts, prompt_encoder
from prefloop.training.memory import is_out_of_memory
from prefloop.training.noise import Key, seed_of

LEAST_TEMPERATURE = 0.01
"""Below it vLLM samples at it, and says so in its log alone (`SamplingParams.__post_init__`)."""


class VLLMEngine:
    """Samples with vLLM from weights that the trainer pushes; between two samplings it sleeps.

    Prompts are encoded here and pass as tokens, so that they are those of the built-in engine. Each request
    has a seed of its own, from its key, so that its noise does not depend on the rest of the batch; its
    logits may, in their last bits.

    Args:
        model: the policy; an adapter on it counts.
        tokenizer: pads on the left.
        config: length, temperature, nucleus.
        precision: "fp32" or "bf16": what vLLM keeps its weights in and computes in.
        memory: share of the GPU's memory for vLLM's weights and cache while it is awake.

    Attributes:
        version: of the weights that were pushed last.

    Raises:
        ConfigError: vLLM or a GPU is missing, vLLM does not start, or samples otherwise than `config` says.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: SamplingConfig,
        precision: str,
        memory: float,
    ) -> None:
        self.tokenizer, self.config = tokenizer, config
        if config.temperature < LEAST_TEMPERATURE:
            raise ConfigError(
                f"engine is vllm, which samples at no temperature below {LEAST_TEMPERATURE}, but "
                f"sampling.temperature is {config.temperature}",
                "raise sampling.temperature, or set engine to built_in",
            )
        self.encoder = prompt_encoder(model, tokenizer, config)
        self._vllm = _library()
        self._folder = tempfile.TemporaryDirectory(prefix="prefloop-vllm-")
        self._llm = self._start(plain(model), precision, memory)
        self._asleep = False
        self.update(model, 0)

    def sample(
        self,
        prompts: Sequence[str | Messages],
        key: Key,
        rows: Sequence[Key] | None = None,
        batch_size: int = 0,
    ) -> Rollouts:
        """One completion a prompt; see `Engine.sample`. vLLM itself decides how many it samples at once.

        Raises:
            TrainingError: vLLM gave a request up, or ran out of memory.
        """
        rows = [(i,) for i in range(len(prompts))] if rows is None else rows
        encoded = [self.encoder.prompt(prompt, self.config.max_new_tokens) for prompt in prompts]
        with _memory():
            self._wake()
            answers = self._llm.generate(
                [self._vllm.TokensPrompt(prompt_token_ids=ids) for ids in encoded],
                [self._request(seed_of((*key, *row))) for row in rows],
                use_tqdm=False,
            )
        self._llm.sleep(level=1)
        self._asleep = True
        written = [answer.outputs[0] for answer in answers]
        lost = [one.finish_reason for one in written if one.finish_reason not in ("stop", "length")]
        if lost or len(written) != len(encoded):
            raise TrainingError(
                f"vLLM finished {len(written) - len(lost)} of {len(encoded)} completions "
                f"({', '.join(sorted({str(reason) for reason in lost})) or 'the others are missing'})",
                "look at vLLM's own messages, or set engine to built_in",
            )
        completions = [list(one.token_ids) for one in written]
        return Rollouts(
            encoded,
            completions,
            [str(self.tokenizer.decode(ids, skip_special_tokens=True)) for ids in completions],
            [one.finish_reason == "stop" for one in written],
            [
                [float(place[token].logprob) for token, place in zip(ids, one.logprobs, strict=True)]
                for ids, one in zip(completions, written, strict=True)
            ],
            [self.version] * len(encoded),
        )

    def update(self, model: PreTrainedModel, version: int) -> None:
        """Loads the model's weights over vLLM's, on the GPU, and drops what it had cached of the old ones.

        Raises:
            TrainingError: the cache could not be dropped, or vLLM ran out of memory.
        """
        with _memory():
            self._wake()
            # vLLM runs in this process, so that tensors pass as they are.
            weights = iter(checkpoint_weights(model).items())
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        if not self._llm.reset_prefix_cache():
            raise TrainingError("vLLM kept its cache of the old weights", "set engine to built_in")
        self.version = version

    def close(self) -> None:
        """Shuts vLLM down, which gives its memory back."""
        self._llm.llm_engine.engine_core.shutdown()
        self._folder.cleanup()

    def _start(self, model: Any, precision: str, memory: float) -> Any:
        """vLLM's `LLM` with the model's shape and weights of no meaning: the trainer's are pushed."""
        folder = Path(self._folder.name)
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        context = context_length(model)
        try:
            return self._vllm.LLM(
                model=str(folder),
                load_format="dummy",
                dtype="bfloat16" if precision == "bf16" else "float32",
                max_model_len=context if context < 1 << 30 else None,
                gpu_memory_utilization=memory,
                enable_prefix_caching=True,  # completions of one prompt share it
                enable_sleep_mode=True,
                logprobs_mode="processed_logprobs",  # at the temperature of sampling
                generation_config="vllm",  # not the model folder's own
            )
        except (ValueError, RuntimeError, NotImplementedError, AssertionError) as error:
            self._folder.cleanup()
            # Of a configuration that vLLM refuses, the first line says only how many errors there are.
            raise ConfigError(
                f"vLLM does not start with this model: {' '.join(str(error).split())[:400]}",
                "free memory on the GPU or change engine_memory; or set engine to built_in",
            ) from error

    def _request(self, seed: int) -> Any:
        """Sampling of one completion, which ends at our end tokens and no others."""
        return self._vllm.SamplingParams(
            n=1,
            temperature=self.config.temperature,
            top_p=max(self.config.top_p, 1e-6),  # 0 is refused; either keeps the first token alone
            max_tokens=self.config.max_new_tokens,
            seed=seed,
            logprobs=0,  # of the drawn token alone
            stop_token_ids=self.encoder.stops,
            ignore_eos=True,
            detokenize=False,
        )

    def _wake(self) -> None:
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False


@contextmanager
def _memory() -> Iterator[None]:
    """Turns a lack of memory into TrainingError: fewer requests would not help, since vLLM takes its share of
    the memory whole, and what it had begun is lost."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            "vLLM ran out of memory beside the trainer",
            "change engine_memory, lower micro_batch_size or max_length, or set engine to built_in",
        ) from error


def _library() -> Any:
    """The package vllm.

    Raises:
        ConfigError: there is no GPU, or vLLM is not installed or broken.
    """
    if not torch.cuda.is_available():
        raise ConfigError("engine is vllm, but no CUDA GPU was found", "set engine to built_in")
    # A worker in a process of its own could not be handed the trainer's tensors.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")  # else it tells of each sleep
    try:
        import vllm
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"engine is vllm, but vLLM cannot be imported: {first_line(error)}",
            "pip install 'prefloop[vllm]' (docs/rollout.md), or set engine to built_in",
        ) from error
    return vllm
