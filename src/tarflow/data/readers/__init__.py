"""The formats of data, one a file: each finds the records of a source, and knows nothing of what becomes of them.

To add one: a file with `claims(source) -> bool`, whether a name or a path is of this format, and a function that opens
it, `(source, options) -> records.Source`; and a line in the table `READERS` of `data/sources.py`.
"""
