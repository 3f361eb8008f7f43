"""Parts of `python -m benchmarks.pipeline`: workspaces, commands in turn, what a run's records say."""
