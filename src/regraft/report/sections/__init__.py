"""Sections of the report, one a file; see :mod:`regraft.report`."""
