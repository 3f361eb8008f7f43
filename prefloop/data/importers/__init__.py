"""One module a format: `convert(record, options)` yields (kind, row); ValueError says why a record cannot be
read.

`KIND` is the kind that an unreadable record counts under. A format is looked up by its module's name, so that
nothing depends on formats it does not read.
"""
