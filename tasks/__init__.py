"""One module a pipeline stage, run as `python -m tasks.STAGE`."""
