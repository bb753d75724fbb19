"""Schemas of what ``regraft serve`` takes and gives, from which the OpenAPI schema is made.

A run of pictures takes a picture, as multipart or as the body itself; a run of texts takes JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from ..data.images import FORMATS
from .limits import Limits
from .model import ServedModel

MEDIA_NAMES = {"PPM": "x-portable-pixmap"}  # of formats whose media type has another name

PICTURES = tuple(f"image/{MEDIA_NAMES.get(name, name.lower())}" for name in FORMATS)

RAW = frozenset({*PICTURES, "application/octet-stream"})  # types of a body that is the picture

FORM = "multipart/form-data"


# ---------------------------------------------------------------- answers


class Problem(BaseModel):
    """Reason why there is no answer, in one sentence."""

    detail: str


class Score(BaseModel):
    """Score of one class, label or number."""

    label: str = Field(description="a class, a label, or the name of a number")
    value: float = Field(description="a probability, or the number in its own units")
    calibrated: float | None = Field(
        description="the probability at the temperature that was fitted on the run's val; null where the run has none"
    )


class TrainingData(BaseModel):
    """Distance of the input from the run's training data."""

    distance: float = Field(description="about 1 for a typical row of train")
    threshold: float = Field(description="above it the input counts as unlike the training data")
    unlike: bool
    false_alarms: float = Field(description="expected rate of the warning on rows like the held-out ones")


class Interval(BaseModel):
    """Interval around a number, in its own units."""

    label: str = Field(description="the name of the number")
    low: float
    high: float


class PredictedSet(BaseModel):
    """Set of classes, or intervals of the numbers, that hold the truth at a stated rate."""

    coverage: float = Field(description="share of inputs like the run's held-out rows whose truth it holds")
    classes: list[str] | None = Field(description="the most probable first; empty: the model is unsure")
    intervals: list[Interval] | None = Field(description="of a row's numbers, which they hold together")


class Predicted(BaseModel):
    """Prediction for one input."""

    label: str = Field(description="the class; the labels joined by the run's separator; or the number")
    scores: list[Score] = Field(description="highest first; numbers in the run's order")
    set: PredictedSet | None = Field(description="null where the run has no sets")
    accepted: bool | None = Field(description="confident enough for the run's evaluate.max_error; null without one")
    training_data: TrainingData | None = Field(description="null where the run cannot tell")


class Piece(BaseModel):
    """Piece of a text with its importance."""

    text: str
    importance: float = Field(description="evidence with everything − evidence without this piece")
    second: bool = Field(description="of the second text of a pair")


class Explained(BaseModel):
    """Importance of each part: the evidence with everything − the evidence with the part covered.

    Evidence is the log-odds of a class or label, or the number itself.
    """

    label: str
    score: float
    cells: list[list[float]] | None = Field(description="of a picture, top row first")
    picture: str | None = Field(description="data: URL of a PNG, the cells drawn over the picture")
    pieces: list[Piece] | None = Field(description="of a text, in its order")


class FalseAlarms(BaseModel):
    """Rate of false alarms of the warning, with its 95 % interval."""

    level: float
    expected: float
    low: float
    high: float
    held_out: int


class About(BaseModel):
    """Description of the run: what it takes, what it answers, and how far to trust it."""

    name: str
    version: str
    task: str
    targets: Literal["class", "labels", "numbers"]
    inputs: Literal["picture", "text", "texts"]
    classes: list[str]
    temperature: float | None
    coverage: float | None = Field(description="of the sets; null where the run has none")
    false_alarms: FalseAlarms | None = Field(description="of the warning, with its 95 % interval")
    notes: list[str]
    megabytes: float
    letters: int
    explains: bool


class Health(BaseModel):
    """Sign that the model answers."""

    status: Literal["ok"]


REASONS = {
    400: "Not a picture that can be read, a damaged form, or a wrong Host.",
    401: "The token is missing or wrong.",
    403: "A browser makes the request for another site.",
    408: "The body did not arrive in time.",
    413: "Too many bytes or pixels, or too much time or memory to decode the picture.",
    415: "Not a type of content that this run takes.",
    422: "The content does not have the fields that belong there.",
    429: "The queue is full: try again after the seconds of Retry-After.",
    500: "The model gave no answer.",
    503: "Stopping, or too many bodies at once.",
    504: "No answer within the time limit.",
}


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of refusals by status."""
    retry = {"Retry-After": {"description": "seconds", "schema": {"type": "string"}}}
    return {
        code: {"model": Problem, "description": REASONS[code]} | ({"headers": retry} if code == 429 else {})
        for code in codes
    }


GUARDED = problems(400, 401, 403)  # refusals of a request without a body

COMPUTED = problems(*REASONS)


# ---------------------------------------------------------------- requests


def text_model(served: ServedModel, limits: Limits) -> type[BaseModel]:
    """Return the schema of a text, or of a pair."""
    field = Field(min_length=1, max_length=limits.letters)
    names = ("text", "text_pair") if served.pairs else ("text",)
    fields: dict[str, Any] = dict.fromkeys(names, (str, field))
    config = ConfigDict(extra="forbid", strict=True)
    return create_model("Texts" if served.pairs else "Text", __config__=config, **fields)


def body_schema(served: ServedModel, limits: Limits) -> dict[str, Any]:
    """Return the requestBody of /predict and /explain."""
    if not served.pictures:
        schema = text_model(served, limits).model_json_schema()
        return {"required": True, "content": {"application/json": {"schema": schema}}}
    binary = {"type": "string", "format": "binary"}
    form = {"type": "object", "required": ["file"], "additionalProperties": False, "properties": {"file": binary}}
    content = {FORM: {"schema": form}} | {kind: {"schema": binary} for kind in sorted(RAW)}
    return {"required": True, "content": content}


def validation_text(errors: Sequence[Any]) -> str:
    """Return the first five errors of pydantic as one line."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the body'}: {e['msg']}" for e in errors[:5])
