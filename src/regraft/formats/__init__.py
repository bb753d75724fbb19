"""Formats of data, one file each, with ``detects`` and ``read``. regraft finds a format by its file's name."""
