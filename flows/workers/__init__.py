"""Stages on other machines: a worker of a Prefect work pool runs them in a clone of its own."""
