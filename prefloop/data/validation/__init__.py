"""Expectations about data: measured row by row, judged by Great Expectations, acted on by severity."""
