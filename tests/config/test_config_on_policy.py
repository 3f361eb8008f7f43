"""The pages of the methods that sample document every key of their sections and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefloop.config.grpo import GRPOConfig
from prefloop.config.online_dpo import OnlineDPOConfig
from prefloop.config.ppo import PPOConfig
from prefloop.config.reinforce import ReinforceConfig
from prefloop.config.rejection import RejectionConfig
from prefloop.config.rloo import RLOOConfig
from prefloop.config.training import TrainingConfig
from tests.test_docs import documented, keys_of

SECTIONS: dict[str, type[TrainingConfig]] = {
    "ppo": PPOConfig,
    "grpo": GRPOConfig,
    "rloo": RLOOConfig,
    "reinforce": ReinforceConfig,
    "online_dpo": OnlineDPOConfig,
    "rejection": RejectionConfig,
}


@pytest.mark.parametrize("section", SECTIONS)
def test_a_page_of_a_method_that_samples_documents_its_section(section: str, repository: Path) -> None:
    own = set(keys_of(SECTIONS[section])) - set(keys_of(TrainingConfig))
    assert sorted(documented(repository / "docs" / f"{section}.md", "Parameters")) == sorted(own)
    # Every field is described where it is declared, in the docstring of its class or a base of it.
    described = "".join(cls.__doc__ or "" for cls in SECTIONS[section].__mro__)
    assert all(name.partition(".")[0] in described for name in own)
