"""Creating, loading and saving models; value and reward heads; adapters."""
