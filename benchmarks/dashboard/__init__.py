"""Parts of `python -m benchmarks.load`: many runs in MLflow, and what people ask of them."""
