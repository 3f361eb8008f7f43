"""The loop, precision, checkpoints and reproducibility."""
