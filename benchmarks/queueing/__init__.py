"""Parts of `python -m benchmarks.load`: servers, workspaces and workers, the queue, and the proof."""
