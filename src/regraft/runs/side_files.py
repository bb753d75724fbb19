"""The schemas of a run's files beside result.json: environment, history, manifest, checks and gallery."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .records import MAX_ENTRIES, Count, Figures, Name, Number, Record, Share, Text, Whole


class Environment(Record):
    """The contents of environment.json: what results depend on beside the plan."""

    regraft: Name
    python: Name
    platform: Name = ""
    versions: Annotated[dict[Name, Name | None], Field(max_length=1_000)]  # of packages; None: not installed
    device: Name  # as torch names it
    device_name: Name  # of the GPU, or of the processor's kind
    threads: Count
    processes: Annotated[int, Field(ge=1, lt=2**20)] = 1
    byteorder: Name = ""  # little or big
    source_digest: Name | None = None  # sha256 of the source's weights
    source_data_digest: Name | None = None  # None without source data
    data_digest: Name  # sha256 of ids, splits and labels
    test_digest: Name


class HistoryLine(Record):
    """A line of history.jsonl: an epoch of a seed."""

    seed: Whole
    epoch: Count  # 0: the starting point
    step: Count = 0  # optimizer steps so far
    terms: Annotated[Figures, Field(max_length=50)]  # each loss term's mean over the epoch
    rates: Annotated[dict[Name, Number], Field(max_length=10_000)]  # learning rate of each block at the end
    val: Figures  # the primary metric and "loss"; empty without val
    best: bool  # True: the best epoch so far
    source: Figures = Field({})  # the source task's metric and what is kept of it; empty if it is not watched


class ManifestRow(Record):
    """A line of manifest.jsonl: a row of the data with its split."""

    id: Name
    hash: Name = ""  # of the inputs
    split: Literal["train", "val", "test"]
    cells: list[Text]  # label cells
    where: Text  # file and row that it came from
    group: Text | None = None  # rows of one group stay in one split; None: a row on its own


class Finding(Record):
    """A finding of a check of the data."""

    severity: Name  # problem, caution or note
    what: Text
    count: Count  # rows that it is about
    of: Count  # rows that the check looked at
    remedy: Text
    examples: list[Text]  # places of the first of them


class Findings(Record):
    """The contents of check.json."""

    findings: list[Finding] = Field(max_length=MAX_ENTRIES)


class Thumbnail(Record):
    """A row in the gallery."""

    where: Text
    truth: Text
    predicted: Text
    picture: Name | None = None  # name of its file in gallery/; None of texts
    text: Text | None = None  # its beginning; None of pictures


class WorstError(Thumbnail):
    """An entry of gallery/gallery.json."""

    probability: Share | None  # of the answer; None if the task has no classes


Gallery = Annotated[list[WorstError], Field(max_length=MAX_ENTRIES)]


class Suspect(Thumbnail):
    """A row whose label is probably wrong."""

    split: Name
    probability: Share  # of the answer
    of_truth: Share = Field(alias="probability of truth")


class Suspects(Record):
    """The contents of gallery/suspects.json."""

    why_not: Text = Field(alias="why not")  # why no row was judged; "" if rows were
    count: Count  # suspected rows
    of: Count  # rows that were judged
    rows: list[Suspect] = Field(max_length=MAX_ENTRIES)  # the most suspicious first
