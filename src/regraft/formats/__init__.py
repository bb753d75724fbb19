"""Formats of data, one file each, with ``detects`` and ``read``. regraft finds a format by its file's name.

A format whose rows have further columns also has ``column_cells``, which :mod:`regraft.data.slices` reads.
"""
