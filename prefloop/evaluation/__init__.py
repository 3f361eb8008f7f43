"""One file a question asked of a model."""
