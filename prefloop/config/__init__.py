"""Frozen, typed configuration: one dataclass a section of params.yaml."""
