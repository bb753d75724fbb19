"""Cells of a CSV file that a spreadsheet shows as text.

A spreadsheet runs a cell that begins with = + - @, a tab or a line break as a formula. A formula may fetch
a page or start a program, and class names and file names come from strangers. ``escaped`` puts an
apostrophe before such a cell, and ``unescaped`` takes it off. Plain numbers stay as they are: "-1" may be
a label.

OWASP, CSV Injection, https://owasp.org/www-community/attacks/CSV_Injection
"""

from __future__ import annotations

import re
from typing import Any

FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")  # spreadsheets in some languages take the wide ones too

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def escaped(cell: Any) -> Any:
    """Return a cell, with an apostrophe before it where a spreadsheet would run it."""
    return f"'{cell}" if isinstance(cell, str) and _is_formula(cell.lstrip("'")) else cell


def unescaped(cell: str) -> str:
    """Return the cell that ``escaped`` was given."""
    return cell[1:] if cell.startswith("'") and _is_formula(cell.lstrip("'")) else cell


def _is_formula(text: str) -> bool:
    return text.startswith(FORMULA_STARTS) and not NUMBER.fullmatch(text)
