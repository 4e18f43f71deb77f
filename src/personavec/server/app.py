"""The routes of a server."""

import asyncio
import json
import mimetypes
import os
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from personavec.server.api import openapi, protocol
from personavec.server.api.answers import Completion
from personavec.server.api.protocol import AskedBody, ChatBody, CompletionBody
from personavec.server.api.responses import ModelResponse, ResponseBody
from personavec.server.exchange import Exchange
from personavec.server.limits import Limits
from personavec.server.refused import HEADERS, Refused
from personavec.server.reply import News
from personavec.server.service import Service
from personavec.server.terms import LOOPBACK
from personavec.steering.dose import largest_dose
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector

POLICY = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
"""What the dashboard may load."""
SANDBOX = "sandbox allow-scripts allow-downloads"
"""A report may not act as the dashboard does; what it may load is said by its policy."""
UNCACHED = {"Cache-Control": "no-store"}
GRACE_SECONDS = 1.0
LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""Characters that JSON leaves as they are and some clients take for the end of a line."""


def build(service: Service, reports: Mapping[str, Path]) -> FastAPI:
    """The application.

    Args:
        service: What answers.
        reports: Pages of runs, by the name they are listed under.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.stop(GRACE_SECONDS)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan, responses=openapi.ERRORS)
    terms, name = service.terms, service.model.identity.id
    hosts = {*LOOPBACK} if terms.host in LOOPBACK else None

    def count(scope: Scope, status: int) -> None:
        """Under the route, so that strange paths make no new series."""
        matched = (route for route in app.routes if route.matches(scope)[0] is not Match.NONE)
        service.metrics.request(getattr(next(matched, None), "path", "other"), status)

    app.add_middleware(Limits, key=terms.key, hosts=hosts, body_bytes=terms.max_request_bytes, count=count)
    static = Path(str(files("personavec.server"))) / "static"
    assets = {path.relative_to(static).as_posix(): path.read_bytes() for path in static.rglob("*") if path.is_file()}
    pages = {secrets.token_urlsafe(16): (name, page.resolve()) for name, page in reports.items()}

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return error.answer()

    @app.exception_handler(HTTPException)
    async def not_there(request: Request, error: HTTPException) -> Response:
        problem = f"expected a path and method of this server, got {request.method} {request.url.path[:200]}"
        return await refused(request, Refused(error.status_code, problem))

    @app.exception_handler(RequestValidationError)
    async def wrong_query(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return await refused(request, Refused(400, f"expected another {first['loc'][-1]}, got: {first['msg']}"))

    @app.post("/v1/chat/completions", openapi_extra=openapi.taking(ChatBody))
    async def chat(request: Request) -> Response:
        return await answer(request, protocol.read(await request.body(), ChatBody))

    @app.post("/v1/completions", openapi_extra=openapi.taking(CompletionBody))
    async def complete(request: Request) -> Response:
        return await answer(request, protocol.read(await request.body(), CompletionBody))

    @app.post("/v1/responses", openapi_extra=openapi.taking(ResponseBody))
    async def respond(request: Request) -> Response:
        return await answer(request, protocol.read(await request.body(), ResponseBody))

    async def answer(request: Request, body: AskedBody) -> Response:
        exchange = await service.open(body)
        kind = ModelResponse if isinstance(body, ResponseBody) else Completion
        made = kind(exchange, service.model, service.spelling)
        news = exchange.news()
        watcher = asyncio.create_task(leave(request, exchange, service))
        try:
            first = await anext(news)
            if body.stream and exchange.jobs[first[0]].reply.finish not in ("error", "deadline"):
                return StreamingResponse(
                    stream(exchange, made, first, news, watcher), media_type="text/event-stream", headers=UNCACHED
                )
            async for _ in news:
                pass
            answered = made.whole(await service.close(exchange))
        except BaseException:
            exchange.cancel()
            watcher.cancel()
            raise
        watcher.cancel()
        return JSONResponse(answered)

    async def stream(
        exchange: Exchange,
        made: Completion | ModelResponse,
        first: tuple[int, News],
        news: AsyncIterator[tuple[int, News]],
        watcher: "asyncio.Task[None]",
    ) -> AsyncIterator[str]:
        """Events of a stream; a client that leaves it ends its replies, and they are logged all the same."""
        try:
            for chunk in made.chunks(*first):
                yield _event(chunk)
            async for index, grown in news:
                for chunk in made.chunks(index, grown):
                    yield _event(chunk)
            try:
                for chunk in made.ending(await service.close(exchange)):
                    yield _event(chunk)
            except Refused as error:
                yield _event(made.failed(error))
            if made.done:
                yield made.done
        finally:
            watcher.cancel()
            if any(job.reply.finish is None for job in exchange.jobs):
                exchange.cancel()
                service.abandon(exchange)

    served = {"id": name, "object": "model", "created": 0, "owned_by": "personavec"}
    served |= {"context": service.model.context, "max_tokens": terms.max_tokens}

    @app.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [served]}

    @app.get("/v1/models/{asked:path}")
    async def model(asked: str) -> Any:
        if asked != name:
            raise Refused(404, f"expected the model {name}, got {asked[:200]}", param="model", code="model_not_found")
        return served

    @app.get("/v1/vectors")
    async def vectors() -> Any:
        return {"object": "list", "data": [_vector(service, name) for name in service.catalogue.vectors]}

    @app.get("/v1/conversations")
    async def conversations(limit: Annotated[int, Query(ge=1, le=1000)] = 50, alerts: bool = False) -> Any:
        rows = await asyncio.to_thread(service.log.conversations, limit, alerts)
        return {"data": [row | {"first": _date(row["first"]), "last": _date(row["last"])} for row in rows]}

    @app.get("/v1/conversations/{name}")
    async def conversation(name: str) -> Any:
        turns = await asyncio.to_thread(service.log.turns, name)
        if not turns:
            raise Refused(404, f"expected a conversation of the log, got {name[:100]}")
        dated = [{"request": turn["id"], "time": _date(turn["time"])} | turn for turn in turns]
        return {"id": name, "turns": [turn | {"time": _date(turn["time"])} for turn in dated]}

    @app.get("/v1/status")
    async def status() -> Any:
        engine = service.engine
        return {
            "running": engine.running,
            "queued": engine.queued,
            "capacity": engine.rows,
            "queue_limit": engine.queue,
            "keep_text": terms.keep_text,
            "retention_days": service.log.retention_days,
            "guard": terms.guard,
            "seconds_up": round(time.monotonic() - service.started, 1),
        }

    @app.get("/v1/reports")
    async def listed() -> Any:
        # a link opens in another tab, where nothing can send the key: who knows the link was given it
        numbered = enumerate(pages.items())
        return {"data": [{"id": n, "name": name, "url": f"/reports/{link}"} for n, (link, (name, _)) in numbered]}

    @app.get("/reports/{link}")
    async def report(link: str) -> Response:
        if link not in pages:
            raise Refused(404, "expected the link of a report, as /v1/reports tells it, got another one")
        try:
            text = await asyncio.to_thread(_read, pages[link][1])
        except OSError:
            raise Refused(404, "expected a report that is where it was, got none, or a link in its place") from None
        return Response(text, media_type="text/html", headers={"Content-Security-Policy": SANDBOX})

    @app.get("/openapi.json", include_in_schema=False)
    async def described() -> Any:
        return openapi.page(app.routes, ChatBody, CompletionBody, ResponseBody)

    @app.get("/health")
    async def health() -> Any:
        return {"status": "alive"}

    @app.get("/ready")
    async def ready() -> Response:
        good = service.engine.alive and service.engine.queued < service.engine.queue
        good = good and await asyncio.to_thread(service.log.writable)
        return JSONResponse({"status": "ready"}) if good else JSONResponse({"status": "busy"}, 503, HEADERS[503])

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/")
    async def page() -> Response:
        return await asset("index.html")

    @app.get("/static/{name:path}")
    async def asset(name: str) -> Response:
        if name not in assets:
            raise Refused(404, "expected a file of the dashboard, got another name")
        kind = mimetypes.guess_type(name)[0] or "text/plain"
        return Response(assets[name], media_type=kind, headers=UNCACHED | {"Content-Security-Policy": POLICY})

    return app


async def leave(request: Request, exchange: Exchange, service: Service) -> None:
    """Wait until the client is gone, end its replies, and log them."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    exchange.cancel()
    service.abandon(exchange)


def _read(page: Path) -> bytes:
    """A file that no link leads to: whoever may write into a run may not have other files shown."""
    if page.resolve() != page:
        raise OSError
    with open(os.open(page, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
        return file.read()


def _event(event: Mapping[str, Any]) -> str:
    name = f"event: {event['type']}\n" if "type" in event else ""
    return f"{name}data: {json.dumps(event, ensure_ascii=False, allow_nan=False).translate(LINE_ENDS)}\n\n"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _vector(service: Service, name: str) -> dict[str, Any]:
    """What a client may know of a vector, its safe doses among it."""
    vector = service.catalogue.vectors[name]
    card = vector.card
    unit_dose = largest_dose(Steering(vector, 1.0, card.layer)) if card.layer is not None else None
    proven = None if unit_dose is None or card.coef is None else unit_dose * card.coef
    return {
        "id": name,
        "trait": card.trait,
        "layer": card.layer,
        "n_layers": len(vector.direction),
        "coef": card.coef,
        "dose": proven,
        "dose_per_coef": unit_dose,
        "safe_dose": None if proven is None else abs(proven),
        "max_dose": service.catalogue.max_dose,
        "reliability": card.reliability[card.layer] if card.reliability and card.layer is not None else None,
        "hash": vector.content_hash,
        "watched": any(watched.vector == name for watched in service.watched),
        "default_dose": sum(
            largest_dose(added) or 0.0 for added in service.steering if added.vector.card.trait == name
        ),
        "band": service.band(name),
        "difference": _difference(vector),
    }


def _difference(vector: PersonaVector) -> float | None:
    """How far replies that show the trait project above those that show its opposite, where the vector came from."""
    card = vector.card
    return float(vector.norms[card.layer]) if card.position == "response avg" and card.layer is not None else None
