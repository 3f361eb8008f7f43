"""Rows, importers, chat templates, validation and batching."""
