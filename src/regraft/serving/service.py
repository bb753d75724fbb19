"""A served model with its threads: from a request to its answer, within the limits."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from math import inf
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from ..compute.versions import __version__
from ..data.decoding import Decoders, StoppedError
from ..data.images import TooCostlyError
from ..errors import DataError, RegraftError
from ..evidence.ood import FALSE_WARNING_RATE
from ..evidence.types import Prediction
from .batching import Batcher
from .explain import GRID, draw_heat, picture_cells, text_pieces
from .figures import Figures
from .limits import Limits
from .model import Answer, ServedModel
from .schemas import (
    FORM,
    PICTURES,
    RAW,
    About,
    Explained,
    FalseAlarms,
    Interval,
    Predicted,
    PredictedSet,
    Score,
    TrainingData,
    text_model,
    validation_text,
)

JOIN_TIMEOUT_S = 1.0  # seconds that a thread has to finish when the server ends

RETRY = {"retry-after": "1"}  # seconds


class Places:
    """A number of places that requests hold; ``refusal`` answers the request that finds none."""

    def __init__(self, most: float = inf, refusal: str = "") -> None:
        self.most, self.refusal, self.taken = most, refusal, 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a place inside the block. Raises HTTPException 429 where all places are taken."""
        if self.taken >= self.most:
            raise HTTPException(429, self.refusal, RETRY)
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


class Service:
    """A served model behind a queue: it reads requests, computes answers and counts both.

    Without ``decoders`` it starts processes of its own for pictures, and closes them.
    """

    def __init__(self, served: ServedModel, limits: Limits, decoders: Decoders | None = None) -> None:
        self.served, self.limits, self.figures = served, limits, Figures()
        self._inside = Places(limits.queue, f"{limits.queue} requests are waiting: try again")
        # an explanation costs about fifty predictions
        self._explaining = Places(limits.explanations, "other explanations are being made: try again")
        self._coming = Places()  # rows that will reach the batcher soon; the batcher waits for them
        self.figures.waiting.set_function(lambda: self._inside.taken)
        self._own = Decoders(wall=limits.seconds) if decoders is None and served.pictures else None
        self._decoders = decoders or self._own
        self._batcher: Batcher[Answer] = Batcher(
            served.answers,
            size=limits.batch,
            wait=limits.wait_ms / 1000,
            coming=lambda: self._coming.taken,
            seen=self.figures.batch.observe,
        )
        # daemon threads, so that none of them delays the end of the process
        self._reader: Batcher[Any] = Batcher(lambda rows: [served.text(rows[0])], size=1, wait=0)
        self._explainer: Batcher[Explained] = Batcher(lambda rows: [explanation(served, *rows[0])], size=1, wait=0)
        self._text_model = None if served.pictures else text_model(served, limits)
        self._wanted = served.wanted(limits) if served.pictures else None

    def start(self) -> None:
        """Start the threads and the decoders."""
        for thread in (self._batcher, self._reader, self._explainer):
            thread.start()
        if self._own is not None:
            self._own.warm_up()

    def close(self) -> None:
        """End the decoders and the threads."""
        if self._own is not None:
            self._own.close()
        for thread in (self._batcher, self._reader, self._explainer):
            thread.close(JOIN_TIMEOUT_S)

    @property
    def alive(self) -> bool:
        """Return whether the model answers."""
        return self._batcher.alive

    @property
    def explains(self) -> bool:
        """Return whether parts of the input can be covered: a slow tokenizer does not map tokens to words."""
        served = self.served
        return served.pictures or bool(served.predictor.preprocessor.tokenizer.is_fast)  # type: ignore[attr-defined]

    async def predict(self, request: Request) -> Predicted:
        """Return the answer to a picture or a text. Raises HTTPException as the schema of /predict lists."""
        with self._inside.one():
            async with self._in_time():
                with self._coming.one():
                    sample = await self._sample(request)
                answer = await self._answer(sample)
        prediction = predicted(self.served, answer)
        if prediction.training_data and prediction.training_data.unlike:
            self.figures.unlike.inc()
        return prediction

    async def explain(self, request: Request, label: str | None) -> Explained:
        """Return the importance of the input's parts. Raises HTTPException as the schema of /explain lists."""
        if label is not None and label not in self.served.classes:
            raise HTTPException(422, f"label: the run has no {label!r}")
        with self._explaining.one():
            async with self._in_time():
                if self._text_model is None:
                    given: Any = await self._sample(request)
                else:
                    given = await texts_of(request, self._text_model)
                return await asyncio.wrap_future(self._explainer.submit((given, label)))

    def about(self) -> About:
        """Return what the run takes, what it answers, and how far to trust it."""
        served, novelty = self.served, self.served.novelty
        rates = None if novelty is None else novelty.false_alarms()
        alarms = None
        if novelty is not None and rates is not None:
            alarms = FalseAlarms(
                level=FALSE_WARNING_RATE,
                expected=novelty.expected,
                low=rates[0],
                high=rates[1],
                held_out=novelty.held_out,
            )
        return About(
            name=served.name,
            version=__version__,
            task=served.predictor.task.name,
            targets=served.predictor.task.targets,
            inputs="picture" if served.pictures else "texts" if served.pairs else "text",
            classes=list(served.classes),
            temperature=None if served.calibrated is None else served.predictor.temperature,
            coverage=None if served.predictor.rule is None else served.predictor.rule.coverage,
            false_alarms=alarms,
            notes=list(served.notes),
            megabytes=self.limits.megabytes,
            letters=self.limits.letters,
            explains=self.explains,
        )

    async def _sample(self, request: Request) -> Any:
        """Return the sample of a request. Raises HTTPException for what cannot be read."""
        try:
            if self._text_model is not None:
                return await asyncio.wrap_future(self._reader.submit(await texts_of(request, self._text_model)))
            assert self._decoders is not None and self._wanted is not None
            picture = self._decoders.submit(await picture_of(request), self._wanted)
            return self.served.picture(await asyncio.wrap_future(picture))
        except TooCostlyError as error:
            raise HTTPException(413, str(error)) from error
        except DataError as error:
            raise HTTPException(400, str(error)) from error
        except StoppedError as error:
            raise HTTPException(503, str(error), RETRY) from error

    async def _answer(self, sample: Any) -> Answer:
        """Return the model's answer. Raises HTTPException where it has none, or where the server stops."""
        try:
            return await asyncio.wrap_future(self._batcher.submit(sample))
        except RegraftError as error:
            raise HTTPException(500, str(error)) from error
        except RuntimeError as error:
            if self.alive:
                raise
            raise HTTPException(503, str(error), RETRY) from error

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """Raise HTTPException 504 where the block takes longer than the limit."""
        try:
            async with asyncio.timeout(self.limits.seconds):
                yield
        except TimeoutError as error:
            raise HTTPException(504, f"no answer within {self.limits.seconds:g} seconds") from error


# ---------------------------------------------------------------- bodies


async def picture_of(request: Request) -> bytes:
    """Return the picture's bytes. Raises HTTPException for any other content."""
    kind = media_type(request)
    if kind in RAW:
        return bytes((await request.receive())["body"])  # the guard gives it whole; body() would copy it
    if kind != FORM:
        raise HTTPException(415, f"this run takes a picture: {FORM}, {', '.join(PICTURES)}")
    try:
        async with request.form(max_files=1, max_fields=1) as form:
            parts = form.multi_items()
            if len(parts) != 1 or parts[0][0] != "file" or isinstance(parts[0][1], str):
                raise HTTPException(422, 'the form has one part, a file, and it is called "file"')
            return await parts[0][1].read()
    except MultiPartException as error:
        raise HTTPException(400, f"the form does not read: {error.message}") from error


async def texts_of(request: Request, model: type[BaseModel]) -> tuple[str, ...]:
    """Return the texts of a request. Raises HTTPException for any other content."""
    if media_type(request) != "application/json":
        raise HTTPException(415, "this run takes a text: application/json")
    try:
        body = model.model_validate_json(await request.body())
    except ValidationError as error:
        raise HTTPException(422, validation_text(error.errors(include_url=False, include_input=False))) from error
    return tuple(str(getattr(body, name)) for name in model.model_fields)


def media_type(request: Request) -> str:
    """Return the type of the body, without its parameters. Raises HTTPException for an encoded body."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HTTPException(415, "send the body without a Content-Encoding")
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


# ---------------------------------------------------------------- answers


def predicted(served: ServedModel, answer: Answer) -> Predicted:
    """Return the model's answer as the client gets it."""
    numbers = served.predictor.task.has_numbers
    order = range(len(answer.scores)) if numbers else np.argsort(-answer.scores, kind="stable")
    sharp = answer.calibrated
    scores = [
        Score(
            label=served.classes[i],
            value=float(answer.scores[i]),
            calibrated=None if sharp is None else float(sharp[i]),
        )
        for i in order
    ]
    distance = None
    if served.novelty is not None and answer.distance is not None:
        distance = TrainingData(
            distance=answer.distance,
            threshold=served.novelty.threshold,
            unlike=answer.distance > served.novelty.threshold,
            false_alarms=served.novelty.expected,
        )
    found = served.predictor.as_prediction(answer.scores, sets=True)
    return Predicted(
        label=found.label,
        scores=scores,
        set=predicted_set(served, found),
        accepted=found.accepted,
        training_data=distance,
    )


def predicted_set(served: ServedModel, found: Prediction) -> PredictedSet | None:
    """Return the set or intervals of a prediction; None where the run has none."""
    rule = served.predictor.rule
    if rule is None:
        return None
    intervals = None
    if found.intervals is not None:
        intervals = [Interval(label=name, low=low, high=high) for name, (low, high) in found.intervals.items()]
    classes = None if found.classes is None else list(found.classes)
    return PredictedSet(coverage=rule.coverage, classes=classes, intervals=intervals)


def explanation(served: ServedModel, given: Any, label: str | None) -> Explained:
    """Return the importance of each part of a picture's sample, or of texts, for a label's score."""
    sample = given if served.pictures else served.text(given)
    scores = served.answers([sample])[0].scores
    output = int(np.argmax(scores)) if label is None else served.classes.index(label)
    cells, picture, pieces = None, None, None
    if served.pictures:
        heat = picture_cells(served, sample, output)
        assert heat.shape == (GRID, GRID)
        cells = heat.tolist()
        picture = "data:image/png;base64," + base64.b64encode(draw_heat(sample, heat)).decode()
    else:
        pieces = text_pieces(served, given, output)
    return Explained(
        label=served.classes[output], score=float(scores[output]), cells=cells, picture=picture, pieces=pieces
    )
