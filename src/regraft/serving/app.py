"""The ASGI application of ``regraft serve``: its routes, its page and its guard.

No route takes an address: the server fetches nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from ..compute.versions import __version__
from ..data.decoding import Decoders
from ..io.streams import Report
from .guard import AccessPolicy, Guard
from .limits import Limits
from .model import ServedModel
from .schemas import COMPUTED, GUARDED, About, Explained, Health, Predicted, Problem, body_schema, validation_text
from .service import Service

PAGE = files("regraft.serving") / "page"

FILES = {  # path: file, type
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
}


def create_app(
    served: ServedModel,
    policy: AccessPolicy,
    limits: Limits | None = None,
    *,
    decoders: Decoders | None = None,
    started: Callable[[], None] = lambda: None,
    complain: Report = lambda line: None,
) -> FastAPI:
    """Return the server of a run's model as an ASGI app; ``complain`` prints its own faults.

    It calls ``started`` once it can answer. It closes its decoders, but not given ones.
    """
    limits = limits or Limits()
    service = Service(served, limits, decoders)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        started()
        try:
            yield
        finally:
            service.close()

    app = FastAPI(
        title=f"regraft serve {served.name}",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,  # those pages load scripts from elsewhere
        openapi_url="/openapi.json",
    )
    app.include_router(routes(service, secured=policy.token is not None))
    for path, (name, kind) in FILES.items():
        app.add_route(path, page(name, kind), methods=["GET"], include_in_schema=False)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": validation_text(error.errors())}, 422)

    service.figures.paths = frozenset({"/", *app.openapi()["paths"]})
    app.add_middleware(Guard, policy=policy, limits=limits, figures=service.figures, complain=complain)
    return app


def routes(service: Service, *, secured: bool) -> APIRouter:
    """Return the routes of a service; ``secured`` only adds the token to their schema, which the guard checks."""
    router = APIRouter()
    token = [Security(HTTPBearer(auto_error=False))] if secured else []
    body = {"requestBody": body_schema(service.served, service.limits)}

    @router.post("/predict", responses=COMPUTED, openapi_extra=body, dependencies=token)
    async def predict(request: Request) -> Predicted:
        """Return the run's answer for a picture or a text."""
        return await service.predict(request)

    if service.explains:
        which: Any = Query(
            None,
            description="answer to explain; default: the run's own",
            json_schema_extra={"enum": list(service.served.classes)},
        )

        @router.post("/explain", responses=COMPUTED, openapi_extra=body, dependencies=token)
        async def explain(request: Request, label: str | None = which) -> Explained:
            """Cover parts of the input in turn and return what the answer rests on.

            It costs about fifty predictions.
            """
            return await service.explain(request, label)

    @router.get("/about", responses=GUARDED, dependencies=token)
    async def about() -> About:
        """Return what the run takes, what it answers, and how far to trust it."""
        return service.about()

    @router.get("/health", responses={503: {"model": Problem}})
    async def health() -> Health:
        """Return 200 while the model answers."""
        if not service.alive:
            raise HTTPException(503, "the model's thread has ended")
        return Health(status="ok")

    @router.get("/metrics", response_class=PlainTextResponse, responses=GUARDED, dependencies=token)
    async def metrics() -> Response:
        """Return Prometheus text."""
        return Response(service.figures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def page(name: str, kind: str) -> Callable[[Request], Any]:
    """Return a route that answers with a file of the page."""
    content = (PAGE / name).read_bytes()

    async def give(request: Request) -> Response:
        return Response(content, media_type=kind)

    return give
