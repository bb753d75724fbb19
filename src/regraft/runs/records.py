"""The base of every record that a run's files hold, and how a file becomes checked records.

A run folder may come from a stranger. Each record is therefore validated where it is read: numbers are finite
and bounded, texts are texts, lists and names have a length, and the names in one field occur in the others.
Readers then take attributes. Unknown keys are allowed and preserved; keys that came later have defaults.

A value that does not validate raises :class:`regraft.io.guarded.NotReadError`. Any other error is a fault of
regraft and stays what it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    AllowInfNan,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)
from pydantic.types import Strict

from ..errors import printable
from ..io import guarded

MAX_ENTRIES = 10_000  # of a list that a report shows


def need(condition: object, words: str) -> None:
    """Raise ValueError with these words unless the condition holds; pydantic makes it a validation error."""
    if not condition:
        raise ValueError(printable(words))


def at_most(characters: int) -> AfterValidator:
    """Return the check of a text's length; pydantic's own refuses names of files that are not UTF-8."""

    def check(text: str) -> str:
        need(len(text) <= characters, f"it has {len(text):,} characters, and at most {characters:,} belong there")
        return text

    return AfterValidator(check)


def nan_if_undefined(value: Any) -> Any:
    """Return NaN for null and for a float that is not finite; any other value as it is."""
    undefined = value is None or (isinstance(value, float) and not math.isfinite(value))
    return math.nan if undefined else value


def none_if_undefined(value: float | None) -> float | None:
    """Return None, which JSON writes as null, for NaN; any other number as it is."""
    return None if value is None or not math.isfinite(value) else value


def bounded(value: float) -> float:
    """Return the number. Raises ValueError beyond ±1e100, which no plot can draw."""
    need(math.isnan(value) or abs(value) <= 1e100, "it is beyond 1e100")
    return value


def numeral(text: str) -> str:
    """Return a text that names a finite number. Raises ValueError for another."""
    need(math.isfinite(float(text[:40])), "it is not finite")
    return text


STRING = WithJsonSchema({"type": "string"})

Text = Annotated[InstanceOf[str], at_most(1_000_000), STRING]

Name = Annotated[InstanceOf[str], at_most(10_000), STRING]

Numeral = Annotated[InstanceOf[str], AfterValidator(numeral), STRING]

Number = Annotated[float, Field(ge=-1e100, le=1e100)]

# A number that may be undefined: NaN here, null in JSON.
Figure = Annotated[
    float,
    Strict(),
    AllowInfNan(True),
    AfterValidator(bounded),
    BeforeValidator(nan_if_undefined),
    PlainSerializer(none_if_undefined, return_type=float | None),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "null"}]}),
]

# A number that may not apply: None here, null in JSON.
MaybeNumber = Annotated[Number | None, BeforeValidator(none_if_undefined)]

Whole = Annotated[int, Strict(), Field(ge=-(2**63), lt=2**64)]

Count = Annotated[int, Strict(), Field(ge=0, lt=2**53)]

Share = Annotated[float, Strict(), Field(ge=0, le=1)]

Seconds = Annotated[float, Strict(), Field(ge=0, le=1e12)]

Figures = Annotated[dict[Name, Figure], Field(max_length=1_000)]


class Record(BaseModel):
    """A JSON object of a run's file, checked field by field."""

    model_config = ConfigDict(
        strict=True,
        extra="allow",
        allow_inf_nan=False,
        frozen=True,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        defer_build=True,  # else each part would compile a validator of its own at import
    )


Model = TypeVar("Model", bound=BaseModel)

T = TypeVar("T")

STATUS = ("finished", "failed", "interrupted")  # which a union puts before the field's own place


def checked(kind: type[T], value: Any) -> T:
    """Return a JSON value as a record of this type. Raises ValueError, naming the field, in one line."""
    try:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind.model_validate(value)
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise ValueError(in_a_line(error)) from error


def in_a_line(error: ValidationError) -> str:
    """Return the first problem with its field, and how many more there are."""
    first, *others = error.errors(include_url=False, include_input=False)
    parts = [str(part) for part in first["loc"]]
    place = ".".join(parts[1:] if parts[:1] and parts[0] in STATUS else parts)[:200]
    message = str(first["msg"]).removeprefix("Value error, ")[:300]
    more = f" (and {len(others)} more)" if others else ""
    return f"{place}: {message}{more}" if place else f"{message}{more}"


def problem(kind: Any, value: Any) -> str | None:
    """Return what is wrong with a JSON value, naming the field, in one line; None if nothing is."""
    try:
        checked(kind, value)
    except ValueError as error:
        return str(error)
    return None


def read(run: Path, name: str, kind: type[T]) -> T | None:
    """Return the record in a JSON file of a run; None if there is no such file.

    Raises NotReadError, naming the file and the field.
    """
    value = guarded.read_json(run, name)
    if value is None:
        return None
    try:
        return checked(kind, value)
    except ValueError as error:
        raise guarded.damaged(run, name, error) from error


def read_lines(run: Path, name: str, kind: type[Model]) -> Iterator[Model]:
    """Yield the records of a .jsonl file; none if there is no such file. Raises NotReadError."""
    data = guarded.read(run, name)
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    for number, line in enumerate(lines, 1):
        yield line_of(run, name, number, line, kind)


def line_of(run: Path, name: str, number: int, line: bytes, kind: type[Model]) -> Model:
    """Return the record in one line. Raises NotReadError, naming the file, line and field."""
    try:
        return checked(kind, guarded.parse_json(line))
    except ValueError as error:
        raise guarded.damaged(run, name, f"line {number}: {error}") from error


def text_in(record: Mapping[str, Any], key: str) -> str:
    """Return a text of an unchecked record; "" if there is none."""
    value = record.get(key)
    return value if isinstance(value, str) else ""
