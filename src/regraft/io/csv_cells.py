"""Cells of a CSV file that a spreadsheet shows and does not run.

A spreadsheet takes a cell that begins with = + - @, a tab or a line break for a formula, which may fetch
or start something: class names and names of files come from strangers. Such a cell gets an apostrophe
before it. Plain numbers are left alone ("-1" is a label like any other), and so are the cells that
need nothing; what was changed reads back by taking one apostrophe off.

OWASP, CSV Injection, https://owasp.org/www-community/attacks/CSV_Injection
"""

from __future__ import annotations

import re
from typing import Any

STARTS = tuple("=+-@\t\r\n＝＋－＠")  # the wide ones count in some languages

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def escaped(cell: Any) -> Any:
    """The cell, with an apostrophe before it where a spreadsheet would take it for a formula."""
    return f"'{cell}" if isinstance(cell, str) and _runs(cell.lstrip("'")) else cell


def unescaped(cell: str) -> str:
    """What ``escaped`` was given."""
    return cell[1:] if cell.startswith("'") and _runs(cell.lstrip("'")) else cell


def _runs(text: str) -> bool:
    return text.startswith(STARTS) and not NUMBER.fullmatch(text)
