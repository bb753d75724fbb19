"""The report: one HTML file from run files only. No file here imports torch.

A section is one file of ``sections/``: ORDER, TITLE, a jinja2 TEMPLATE, and ``context(run)``, which returns the
template's values, or a sentence that says why there is nothing to show.
"""
