"""Series of `python -m benchmarks.scaling`: what a cost becomes when one thing grows."""
