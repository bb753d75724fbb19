"""The guarantees of result.json: sets that hold the truth at a stated rate, and answers whose error is small."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .estimates import Estimate
from .records import Count, Record, Share, Text, need
from .result_parts import Temperature


class SetRule(Record):
    """The rule that makes a set of classes, or intervals, of a row's scores; without bounds if rows were too few."""

    coverage: Share = Field(description="share of new rows whose truth the sets are to hold")
    rows: Count = Field(description="held-out rows that the bound is from")
    least_rows: Count = Field(description="least number of such rows at this coverage")
    temperature: Temperature | None = Field(
        None, description="temperature of the probabilities that are compared; null for numbers, or without sets"
    )
    least_probability: Share | None = Field(
        None, description="a class is in the set from this probability on; null for numbers, or without sets"
    )
    half_widths: list[Annotated[float, Field(ge=0, le=1e100)]] | None = Field(
        None, max_length=1_000_000, description="half-width of each number's interval; null for classes, or without"
    )

    @model_validator(mode="after")
    def _is_one_rule(self) -> SetRule:
        of_classes = (self.temperature is not None, self.least_probability is not None)
        need(of_classes[0] == of_classes[1], "temperature and least_probability go together")
        need(not (of_classes[0] and self.half_widths is not None), "sets are of classes or of numbers")
        return self

    @property
    def exists(self) -> bool:
        """Return whether there are sets."""
        return self.least_probability is not None or self.half_widths is not None

    @property
    def percent(self) -> str:
        """Return the coverage in percent, as in "90 %"."""
        return f"{100 * self.coverage:g} %"

    @property
    def refusal(self) -> str:
        """Return why there are no sets, or "" if there are."""
        if self.exists:
            return ""
        return (
            f"no {self.percent} sets: they need {self.least_rows} held-out rows, and there are {self.rows}; "
            "add rows of val, or lower evaluate.coverage"
        )


class Sets(SetRule):
    """Sets of classes, or intervals around numbers, by split conformal prediction, and their figures on test."""

    by: Literal["val", "cross-validation"] = Field(
        description="which rows: val; or train as cross-validation scored it, for which the guarantee is approximate"
    )
    grouped: bool = Field(description="true: these rows come in groups, and the law counts what they are worth")
    law: Estimate | None = Field(
        None, description="coverage of new rows: expected, and middle 95 % over draws of the held-out rows"
    )
    test: Estimate | None = Field(None, description="share of test rows whose truth is in their set or intervals")
    size: Estimate | None = Field(None, description="mean number of classes in a set on test; null for numbers")
    empty: Estimate | None = Field(None, description="share of test rows with an empty set; null for numbers")


class RiskPoint(Record):
    """A point of the risk-coverage curve on test."""

    confidence: Share = Field(description="least confidence of an accepted row, at the temperature")
    accepted: Share = Field(description="share of test rows that are accepted")
    error: Share = Field(description="share of these that are wrong")


class Threshold(Record):
    """The confidence from which on the model's answers are accepted."""

    max_error: Share = Field(description="largest error among accepted rows, evaluate.max_error")
    temperature: Temperature | None = Field(
        None, description="temperature of the probabilities that are compared; null: the task has none"
    )
    threshold: Share | None = Field(
        None, description="a row is accepted if its highest probability is above this; null: none is proved"
    )

    @model_validator(mode="after")
    def _is_a_rule(self) -> Threshold:
        need(self.threshold is None or self.temperature is not None, "threshold needs a temperature")
        return self

    @property
    def percent(self) -> str:
        """Return the largest error in percent, as in "5 %"."""
        return f"{100 * self.max_error:g} %"


class Abstention(Threshold):
    """The rows that the model accepts so that its error on them is small, with 95 % confidence."""

    rows: Count = Field(description="held-out rows that prove the threshold")
    by: Literal["val", "cross-validation"] = Field(
        description="which rows: val; or train as cross-validation scored it, for which the proof is approximate"
    )
    grouped: bool = Field(False, description="true: these rows come in groups, for which the proof is approximate")
    least_rows: Count = Field(description="least number of accepted rows that prove it, without an error")
    accepted_rows: Count = Field(0, description="held-out rows above the threshold")
    errors: Count = Field(0, description="wrong ones among them")
    why: Text = Field("", description='why there is no threshold; "" if there is one')
    accepted: Estimate | None = Field(None, description="share of test rows above the threshold")
    error: Estimate | None = Field(None, description="share of these that are wrong; null: none is above")
    curve: list[RiskPoint] = Field([], max_length=1_000, description="error among the most confident test rows")
