"""The slices of result.json: test rows by the values of a column, each compared with all other rows."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from .estimates import Estimate
from .records import MAX_ENTRIES, Count, Name, Record, Text, need
from .result_parts import Estimates

MIN_ROWS = 10  # of a value that is compared; rarer values are pooled

MIN_GROUPS = 5  # of a value that is compared, where rows come in groups

EMPTY = "(empty)"  # how the value of empty cells is shown


class SliceValue(Record):
    """The rows with one value of a column."""

    value: Text = Field(description='the value; "": the cell is empty')
    n: Count = Field(description="rows with this value")
    metrics: Estimates = Field(description="metrics of these rows, each interval by itself")
    difference: Estimate | None = Field(
        None,
        description="primary metric of these rows less that of all other rows; positive is better; the intervals of "
        "all values of all columns hold together; null: not compared, for too few other rows or too few groups",
    )
    worse: bool = Field(description="true: the whole interval of the difference is below 0")

    @property
    def name(self) -> str:
        """Return the value as it is shown."""
        return self.value or EMPTY


class FewRows(Record):
    """The values with too few rows to be compared, taken together."""

    values: Count = Field(description="values")
    n: Count = Field(description="their rows")
    metrics: Estimates = Field(description="metrics of these rows")


class Slice(Record):
    """The rows by the values of one column."""

    column: Name = Field(description="the column")
    values: list[SliceValue] = Field(
        max_length=MAX_ENTRIES, description="values with enough rows, the worst on the primary metric first"
    )
    few: FewRows | None = Field(None, description="rarer values, pooled; null: there are none")


class Slices(Record):
    """The rows by the values of the columns that the plan names."""

    primary: Name = Field(description="metric of the differences")
    comparisons: Count = Field(description="differences whose intervals hold together with 95 % confidence")
    min_rows: Count = Field(MIN_ROWS, description="rows from which on a value is compared")
    columns: list[Slice] = Field(min_length=1, max_length=1_000, description="the columns, as they were named")

    def names_the_primary(self) -> None:
        """Raise ValueError where figures of the primary metric are missing."""
        for column in self.columns:
            every = [value.metrics for value in column.values] + ([column.few.metrics] if column.few else [])
            for metrics in every:
                need(self.primary in metrics, f'slices.{column.column} have no "{self.primary}"')

    def worse(self) -> Iterator[tuple[str, SliceValue]]:
        """Yield (column, value) of each value that is shown to be worse than all other rows."""
        for column in self.columns:
            yield from ((column.column, value) for value in column.values if value.worse)
