"""Library of the RLHF pipeline: data, models, objectives, rollouts, rewards, training, evaluation."""
