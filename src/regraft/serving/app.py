"""The routes, what they take and give, and the OpenAPI schema that says so.

A run of pictures takes a picture, as multipart or as the body itself; a run of texts takes JSON. Nothing
takes an address: the server fetches nothing.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.resources import files
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from ..compute.versions import __version__
from ..data.decoding import Decoders, StoppedError
from ..data.images import FORMATS, TooCostlyError
from ..errors import DataError, RegraftError
from ..evidence.ood import LEVEL
from .batching import Batcher
from .explain import GRID, drawn, picture_cells, text_pieces
from .figures import Figures
from .guard import AccessPolicy, Guard
from .limits import Limits
from .model import Answer, ServedModel

PAGE = files("regraft.serving") / "page"

KINDS = {
    "JPEG": "jpeg",
    "PNG": "png",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tiff",
    "WEBP": "webp",
    "PPM": "x-portable-pixmap",
}

PICTURES = tuple(f"image/{KINDS[name]}" for name in FORMATS)

RAW = frozenset({*PICTURES, "application/octet-stream"})

FORM = "multipart/form-data"

AGAIN = {"retry-after": "1"}

END = 1.0  # seconds that a thread has to finish, when the server ends


# ---------------------------------------------------------------- what goes out


class Problem(BaseModel):
    """Why there is no answer, in one sentence."""

    detail: str


class Score(BaseModel):
    label: str = Field(description="a class, a label, or the name of a number")
    value: float = Field(description="a probability, or the number in its own units")
    calibrated: float | None = Field(
        description="the probability at the temperature that fits the run's val; null where it has none"
    )


class TrainingData(BaseModel):
    """How far the input is from the run's training data."""

    distance: float = Field(description="about 1 for a typical row of train")
    threshold: float = Field(description="above it the input counts as unlike the training data")
    unlike: bool
    false_alarms: float = Field(description="expected rate of the warning on rows like those of val")


class Predicted(BaseModel):
    label: str = Field(description="the class; the labels joined by the run's separator; or the number")
    scores: list[Score] = Field(description="highest first; numbers in the run's order")
    training_data: TrainingData | None = Field(description="null where the run cannot tell")


class PieceOut(BaseModel):
    text: str
    importance: float = Field(description="evidence with everything − evidence without this piece")
    second: bool = Field(description="of the second text of a pair")


class Explained(BaseModel):
    """Importance of a part: the evidence with everything − that with the part covered. Evidence is the
    log-odds of a class or label, or the number itself."""

    label: str
    score: float
    cells: list[list[float]] | None = Field(description="of a picture, top row first")
    picture: str | None = Field(description="data: URL of a PNG, the cells drawn over the picture")
    pieces: list[PieceOut] | None = Field(description="of a text, in its order")


class FalseAlarms(BaseModel):
    level: float
    expected: float
    low: float
    high: float
    held_out: int


class About(BaseModel):
    name: str
    version: str
    task: str
    targets: Literal["class", "labels", "numbers"]
    inputs: Literal["picture", "text", "texts"]
    classes: list[str]
    temperature: float | None
    false_alarms: FalseAlarms | None = Field(description="of the warning, with its 95 % interval")
    notes: list[str]
    megabytes: float
    letters: int
    explains: bool


class Health(BaseModel):
    status: Literal["ok"]


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    said = {
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
    again = {"Retry-After": {"description": "seconds", "schema": {"type": "string"}}}
    return {
        code: {"model": Problem, "description": said[code]} | ({"headers": again} if code == 429 else {})
        for code in codes
    }


FEW = problems(400, 401, 403)

MANY = problems(400, 401, 403, 408, 413, 415, 422, 429, 500, 503, 504)


# ---------------------------------------------------------------- what comes in


def text_model(served: ServedModel, limits: Limits) -> type[BaseModel]:
    """The JSON of a text, or of two."""
    field = Field(min_length=1, max_length=limits.letters)
    names = ("text", "text_pair") if served.pairs else ("text",)
    fields: dict[str, Any] = dict.fromkeys(names, (str, field))
    config = ConfigDict(extra="forbid", strict=True)
    return create_model("Texts" if served.pairs else "Text", __config__=config, **fields)


def body_schema(served: ServedModel, limits: Limits) -> dict[str, Any]:
    """requestBody of /predict and /explain."""
    if not served.pictures:
        schema = text_model(served, limits).model_json_schema()
        return {"required": True, "content": {"application/json": {"schema": schema}}}
    binary = {"type": "string", "format": "binary"}
    form = {"type": "object", "required": ["file"], "additionalProperties": False, "properties": {"file": binary}}
    content = {FORM: {"schema": form}} | {kind: {"schema": binary} for kind in sorted(RAW)}
    return {"required": True, "content": content}


async def uploaded(request: Request) -> bytes:
    """The picture of a request. Raises HTTPException for anything else."""
    kind = media_type(request)
    if kind in RAW:
        return bytes((await request.receive())["body"])  # whole, see guard; body() would copy it
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


async def written(request: Request, model: type[BaseModel]) -> tuple[str, ...]:
    """The texts of a request. Raises HTTPException for anything else."""
    if media_type(request) != "application/json":
        raise HTTPException(415, "this run takes a text: application/json")
    try:
        found = model.model_validate_json(await request.body())
    except ValidationError as error:
        raise HTTPException(422, in_words(error.errors(include_url=False, include_input=False))) from error
    return tuple(str(getattr(found, name)) for name in model.model_fields)


def media_type(request: Request) -> str:
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HTTPException(415, "bodies are taken as they are, without a Content-Encoding")
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def in_words(errors: Any) -> str:
    found = [f"{'.'.join(map(str, e['loc'])) or 'the body'}: {e['msg']}" for e in errors[:5]]
    return "; ".join(found)


# ---------------------------------------------------------------- places


class AdmissionControl:
    """How many requests are inside, and how many of them have not reached the batcher."""

    def __init__(self, figures: Figures, places: int, explanations: int) -> None:
        self.figures, self.places, self.explanations = figures, places, explanations
        self.inside = self.explaining = self.coming = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Raises HTTPException where all are taken."""
        if self.inside >= self.places:
            raise HTTPException(429, f"{self.places} requests are waiting: try again", AGAIN)
        self.inside += 1
        self.figures.waiting.set(self.inside)
        try:
            yield
        finally:
            self.inside -= 1
            self.figures.waiting.set(self.inside)

    @contextmanager
    def explanation(self) -> Iterator[None]:
        """The same for explanations, which cost some fifty predictions each."""
        if self.explaining >= self.explanations:
            raise HTTPException(429, "other explanations are being made: try again", AGAIN)
        self.explaining += 1
        try:
            yield
        finally:
            self.explaining -= 1

    @contextmanager
    def on_the_way(self) -> Iterator[None]:
        self.coming += 1
        try:
            yield
        finally:
            self.coming -= 1


# ---------------------------------------------------------------- the app


def create_app(
    served: ServedModel,
    door: AccessPolicy,
    limits: Limits | None = None,
    *,
    decoders: Decoders | None = None,
    started: Callable[[], None] = lambda: None,
    complain: Callable[[str], None] = lambda line: None,
) -> FastAPI:
    """The server of a run's model as an ASGI app; ``complain`` hears of faults of its own.

    ``decoders`` are closed with it, unless they are given.
    """
    limits = limits or Limits()
    own = Decoders(wall=limits.seconds) if decoders is None and served.pictures else None
    decoders = decoders or own
    figures = Figures()
    desk = AdmissionControl(figures, limits.queue, limits.explanations)
    batcher: Batcher[Answer] = Batcher(
        served.answers,
        size=limits.batch,
        wait=limits.wait_ms / 1000,
        coming=lambda: desk.coming,
        seen=figures.batch.observe,
    )
    # daemon threads, so that none of them holds up the end
    reader: Batcher[Any] = Batcher(lambda given: [served.text(given[0])], size=1, wait=0)
    explainer: Batcher[Explained] = Batcher(lambda given: [explained(served, *given[0])], size=1, wait=0)
    threads = (batcher, reader, explainer)
    texts = None if served.pictures else text_model(served, limits)
    wanted = served.wanted(limits) if served.pictures else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for thread in threads:
            thread.start()
        if own is not None:
            own.warm_up()
        started()
        try:
            yield
        finally:
            if own is not None:
                own.close()
            for thread in threads:
                thread.close(END)

    secured = [Security(HTTPBearer(auto_error=False))] if door.token else []
    app = FastAPI(
        title=f"regraft serve {served.name}",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,  # those pages load scripts from elsewhere
        openapi_url="/openapi.json",
    )

    async def read(request: Request) -> Any:
        """The sample of a request."""
        try:
            if texts is not None:
                return await asyncio.wrap_future(reader.submit(await written(request, texts)))
            assert decoders is not None and wanted is not None
            answer = decoders.submit(await uploaded(request), wanted)
            return served.picture(await asyncio.wrap_future(answer))
        except TooCostlyError as error:
            raise HTTPException(413, str(error)) from error
        except DataError as error:
            raise HTTPException(400, str(error)) from error
        except StoppedError as error:
            raise HTTPException(503, str(error), AGAIN) from error

    async def computed(sample: Any) -> Answer:
        try:
            return await asyncio.wrap_future(batcher.submit(sample))
        except RegraftError as error:
            raise HTTPException(500, str(error)) from error
        except RuntimeError as error:
            if batcher.alive:
                raise
            raise HTTPException(503, str(error), AGAIN) from error

    @asynccontextmanager
    async def in_time() -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(limits.seconds):
                yield
        except TimeoutError as error:
            raise HTTPException(504, f"no answer within {limits.seconds:g} seconds") from error

    body = {"requestBody": body_schema(served, limits)}

    @app.post("/predict", responses=MANY, openapi_extra=body, dependencies=secured)
    async def predict(request: Request) -> Predicted:
        """The run's answer for a picture or a text."""
        with desk.place():
            async with in_time():
                with desk.on_the_way():
                    sample = await read(request)
                answer = await computed(sample)
        found = predicted(served, answer)
        if found.training_data and found.training_data.unlike:
            figures.unlike.inc()
        return found

    if explains(served):
        which: Any = Query(
            None,
            description="which answer to explain; default: the run's own",
            json_schema_extra={"enum": list(served.classes)},
        )

        @app.post("/explain", responses=MANY, openapi_extra=body, dependencies=secured)
        async def explain(request: Request, label: str | None = which) -> Explained:
            """What the answer rests on: parts of the input are covered in turn. It costs some fifty
            predictions."""
            if label is not None and label not in served.classes:
                raise HTTPException(422, f"label: the run has no {label!r}")
            with desk.explanation():
                async with in_time():
                    if texts is None:
                        given: Any = await read(request)
                    else:
                        given = await written(request, texts)
                    return await asyncio.wrap_future(explainer.submit((given, label)))

    @app.get("/about", responses=FEW, dependencies=secured)
    async def about() -> About:
        """The run: what it takes, what it answers, and how far to trust it."""
        return about_run(served, limits)

    @app.get("/health", responses={503: {"model": Problem}})
    async def health() -> Health:
        """200 while the model answers."""
        if not batcher.alive:
            raise HTTPException(503, "the model's thread has ended")
        return Health(status="ok")

    @app.get("/metrics", response_class=PlainTextResponse, responses=FEW, dependencies=secured)
    async def metrics() -> Response:
        """Prometheus text."""
        return Response(figures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    for path, name, kind in (
        ("/", "index.html", "text/html"),
        ("/app.js", "app.js", "text/javascript"),
        ("/style.css", "style.css", "text/css"),
    ):
        app.add_route(path, page(name, kind), methods=["GET"], include_in_schema=False)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": in_words(error.errors())}, 422)

    paths = frozenset({"/", *app.openapi()["paths"]})
    app.add_middleware(Guard, door=door, limits=limits, figures=figures, paths=paths, complain=complain)
    return app


def page(name: str, kind: str) -> Callable[[Request], Any]:
    content = (PAGE / name).read_bytes()

    async def give(request: Request) -> Response:
        return Response(content, media_type=kind)

    return give


def explains(served: ServedModel) -> bool:
    """Whether parts of the input can be covered: a slow tokenizer does not say which tokens are a word."""
    return served.pictures or bool(served.predictor.preprocessor.tokenizer.is_fast)  # type: ignore[attr-defined]


def predicted(served: ServedModel, answer: Answer) -> Predicted:
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
    far = None
    if served.novelty is not None and answer.distance is not None:
        n = served.novelty
        far = TrainingData(
            distance=answer.distance,
            threshold=n.threshold,
            unlike=answer.distance > n.threshold,
            false_alarms=n.expected,
        )
    label = served.predictor.task.label(answer.scores)
    return Predicted(label=label, scores=scores, training_data=far)


def explained(served: ServedModel, given: Any, label: str | None) -> Explained:
    """A sample of a picture, or texts, → what the label's score rests on."""
    sample = given if served.pictures else served.text(given)
    scores = served.answers([sample])[0].scores
    output = int(np.argmax(scores)) if label is None else served.classes.index(label)
    cells, picture, pieces = None, None, None
    if served.pictures:
        heat = picture_cells(served, sample, output)
        assert heat.shape == (GRID, GRID)
        cells = heat.tolist()
        picture = "data:image/png;base64," + base64.b64encode(drawn(sample, heat)).decode()
    else:
        pieces = [PieceOut(**vars(p)) for p in text_pieces(served, given, output)]
    return Explained(
        label=served.classes[output], score=float(scores[output]), cells=cells, picture=picture, pieces=pieces
    )


def about_run(served: ServedModel, limits: Limits) -> About:
    n = served.novelty
    rates = None if n is None else n.false_alarms()
    return About(
        name=served.name,
        version=__version__,
        task=served.task,
        targets=served.predictor.task.targets,
        inputs="picture" if served.pictures else "texts" if served.pairs else "text",
        classes=list(served.classes),
        temperature=None if served.sharper is None else served.predictor.temperature,
        false_alarms=None
        if n is None or rates is None
        else FalseAlarms(level=LEVEL, expected=n.expected, low=rates[0], high=rates[1], held_out=n.held_out),
        notes=list(served.notes),
        megabytes=limits.megabytes,
        letters=limits.letters,
        explains=explains(served),
    )
