"""`prefloop watch`: runs the pipeline when data changes, by content and not by time or path."""
