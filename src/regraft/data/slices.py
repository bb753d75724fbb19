"""Values of further columns for some rows of a data set, by which figures are shown.

The columns are read once more, after the rows are split, so that rows and their columns in memory stay as they are.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from .. import plugins
from ..errors import DataError, shorten
from .columns import places_of
from .loading import format_name
from .types import Example, RowOptions

MAX_VALUES = 50  # of a column that figures are shown by

Values = dict[str, list[str]]  # column → value of each row [N]


def check_columns(options: RowOptions, names: Sequence[str]) -> None:
    """Raise DataError for columns that the data do not have, or that cannot be sliced by; read no row."""
    if names:
        _cells(options, names, ())


def read_values(options: RowOptions, names: Sequence[str], rows: Sequence[Example], which: str) -> Values:
    """Return the value of each row in each of the named columns. Blank cells have the value "".

    ``which`` names the rows for messages. Raises DataError as ``check_columns`` does, for rows without a value, for a
    column with more than MAX_VALUES values, and for one in which every row has another value.
    """
    if not names:
        return {}
    places = places_of(rows)
    cells = dict(_cells(options, names, set(places)))
    if missing := [where for where in places if where not in cells]:
        raise DataError(
            f"--slice: {len(missing)} of {len(rows)} {which} have no column {' or '.join(names)}: "
            f"{shorten(missing, 3)}; add it to every table that they come from"
        )
    found: Values = {}
    for i, name in enumerate(names):
        values = [cells[where][i] for where in places]
        found[name] = [value if value.strip() else "" for value in values]
        check_count(name, found[name], which)
    return found


def check_count(name: str, values: Sequence[str], which: str) -> None:
    """Raise DataError for a column with too many values to show figures by."""
    distinct = len(set(values))
    if distinct > MAX_VALUES or (distinct == len(values) and distinct > 1):
        raise DataError(
            f'--slice: the column "{name}" has {distinct} values in {len(values)} {which}, and figures are shown by '
            f"{MAX_VALUES} at most, each of several rows: put the values into bins in a column of their own"
        )


def _cells(options: RowOptions, names: Sequence[str], wanted: Container[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    path = Path(options.path)
    module = plugins.module("formats", format_name(path, options.format))
    if not hasattr(module, "column_cells"):
        raise DataError(
            f"--slice: the rows of {path} have no columns ({shorten(names)}): give a table with a row for each "
            "picture, its file, label and these columns, as in regraft fit labels.csv --image file --slice "
            f"{names[0]}"
        )
    if repeated := {name for name in names if names.count(name) > 1}:
        raise DataError(f"--slice names a column twice: {shorten(sorted(repeated))}; name it once")
    found: Iterator[tuple[str, tuple[str, ...]]] = module.column_cells(path, options, names, wanted)
    return found
