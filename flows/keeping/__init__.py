"""Housekeeping: what nothing needs any more, and how it goes without breaking what stays."""
