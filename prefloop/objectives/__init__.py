"""One file an algorithm: pure functions on tensors."""
