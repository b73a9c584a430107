"""The ASGI app: every documented route, for any ASGI server. `fast_lane.py` does without it where it can.

The routes are FastAPI's so that OpenAPI and `/docs` are true; bodies go to the service as bytes, since
validating them with pydantic would cost more than all the rest.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from importlib import resources
from importlib.metadata import version
from typing import Any
from urllib.parse import unquote

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send

from carpool.errors import CarpoolError, WrongMethod
from carpool.observe import metrics
from carpool.server.documentation import request_body, responses, show_answers
from carpool.server.models import OWN
from carpool.server.passthrough import check_whole
from carpool.server.routes import batched_routes, nearest_dialect, not_found, read_routes
from carpool.server.service import Service
from carpool.wire.base import JSON, Reply, Route, json_reply

_UNREAD = Response(status_code=499)  # to a caller that has hung up

_AUTHORITY = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)  # of a whole URL in the place of a path

_DESCRIPTION = "Requests that arrive alone leave together: one input a request or many, batched for the model."


def create_app(service: Service) -> FastAPI:
    """The app that serves `service`, and starts and closes it with its lifespan."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.close()

    app = FastAPI(
        title="carpool",
        version=version("carpool"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages have the browser fetch their scripts from the internet
        redoc_url=None,
        redirect_slashes=False,  # a redirect would cost a client its body, and hide a wrong URL
    )
    routes = batched_routes(service)
    for route in routes:
        _add_batched(app, service, route)
    reads = read_routes(service)
    for path, (read, summary) in reads.items():
        _add_get(app, path, _reader(path, read), summary, _is_documented(service, path))
    _add_metrics(app, service)
    _add_docs(app)
    show_answers(app, {path: read for path, (read, _) in reads.items() if _is_documented(service, path)})
    app.add_exception_handler(HTTPException, partial(_refuse, service, {route.path: route for route in routes}))
    app.router.default = partial(_forward, service, app.router)
    return app


def _add_batched(app: FastAPI, service: Service, route: Route) -> None:
    async def endpoint(request: Request) -> Response:
        try:
            reply = await _answer(request, service, route)
        except CarpoolError as error:
            reply = route.encode_error(error)
        except ClientDisconnect:
            return _UNREAD
        service.metrics.responses[route.path, reply.status] += 1
        return _response(reply)

    app.add_api_route(
        route.path,
        endpoint,
        methods=["POST"],
        name=route.path.strip("/"),
        summary=route.summary,
        response_class=Response,
        responses=responses(route),
        include_in_schema=_is_documented(service, route.path),
        openapi_extra={"requestBody": request_body(route)},
    )


def _is_documented(service: Service, path: str) -> bool:
    """Whether a path is in OpenAPI: one model's own paths say nothing new where there is no other."""
    return service.models.only is None or not path.startswith(OWN)


def _reader(path: str, read: Callable[[], Reply]) -> Callable[[], Awaitable[Response]]:
    async def endpoint() -> Response:
        try:
            return _response(read())
        except CarpoolError as error:
            return _response(nearest_dialect(path)(error))

    return endpoint


def _add_metrics(app: FastAPI, service: Service) -> None:
    async def read_metrics(request: Request) -> Response:
        if JSON in request.headers.get("accept", ""):
            return _response(json_reply(service.metrics.summary()))
        return Response(service.metrics.prometheus(), media_type=metrics.CONTENT_TYPE)

    summary = "Prometheus text; with `Accept: application/json` a summary in seconds."
    _add_get(app, "/metrics", read_metrics, summary)


def _add_docs(app: FastAPI) -> None:
    """`/docs`, all of which comes from here. Its URLs are relative, so that it may lie behind a prefix."""

    async def page() -> Response:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=app.title,
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="docs/favicon-32x32.png",
        )

    def sender(path: str) -> Callable[[], Awaitable[Response]]:
        async def send() -> Response:
            return FileResponse(path)

        return send

    _add_get(app, "/docs", page, "This page.", is_documented=False)
    files = resources.files("fastapi_swagger") / "resources"
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"):
        _add_get(app, f"/docs/{name}", sender(str(files / name)), "A part of it.", is_documented=False)


def _add_get(
    app: FastAPI,
    path: str,
    endpoint: Callable[..., Awaitable[Response]],
    summary: str,
    is_documented: bool = True,
) -> None:
    app.add_api_route(
        path,
        endpoint,
        methods=["GET"],
        summary=summary,
        response_class=Response,
        include_in_schema=is_documented,
    )
    app.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)


async def _answer(request: Request, service: Service, route: Route) -> Reply:
    """The reply; raises `ClientDisconnect` if the caller hangs up first, and leaves the queue at once."""
    route, terms = service.read_head(route, request.headers)
    body = await _read_body(request, service, route)
    reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    admitted = service.enqueue(route, terms, body, reply.set_result)
    if admitted is None:
        return await reply
    gone = asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait((reply, gone), return_when=asyncio.FIRST_COMPLETED)
        if not reply.done():
            raise ClientDisconnect
        return reply.result()
    finally:
        gone.cancel()
        service.cancel(admitted)


async def _read_body(request: Request, service: Service, route: Route) -> bytes:
    """The body, refused as early as it can be known to be too large."""
    chunks, length = [], 0
    async for chunk in request.stream():
        length += len(chunk)
        service.check_length(route, length)
        chunks.append(chunk)
    check_whole(length, request.headers.get("content-length"))
    return b"".join(chunks)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _forward(service: Service, router: APIRouter, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer what no route does: by a model's upstreams, if it is a proxied one's."""
    path = scope.get("raw_path") or scope["path"].encode()
    if whole := _AUTHORITY.match(path):  # some servers leave it to the app to take a whole URL apart
        path = path[whole.end() :] or b"/"
        await router(dict(scope) | {"raw_path": path, "path": unquote(path)}, receive, send)
        return
    passthrough, prefix = service.models.behind(path.decode("latin-1"))
    if passthrough is None:
        await router.not_found(scope, receive, send)
    else:
        await passthrough(dict(scope) | {"raw_path": path[len(prefix) :] or b"/"}, receive, send)


async def _refuse(
    service: Service, routes: Mapping[str, Route], request: Request, error: Exception
) -> Response:
    """An unknown route or method, in the dialect of the route that was nearest to be meant."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    refusal: CarpoolError
    if error.status_code == 404:
        refusal = not_found(service, path, routes.values())
    elif error.status_code == 405:
        allowed = ", ".join(sorted(_methods(request.app, path)))
        refusal = WrongMethod(f"{path} does not take {request.method}", f"allowed: {allowed}", allowed)
    else:
        refusal = CarpoolError(str(error.detail))
    known = routes.get(path)
    encode_error = nearest_dialect(path, routes.values()) if known is None else known.encode_error
    return _response(encode_error(refusal))


def _methods(app: FastAPI, path: str) -> set[str]:
    """Those that a path has: each of its routes only knows its own."""
    routes = [route for route in app.routes if isinstance(route, APIRoute) and route.path == path]
    return {method for route in routes for method in route.methods or ()}


def _response(reply: Reply) -> Response:
    headers: dict[str, Any] = dict(reply.headers)
    return Response(reply.body, reply.status, headers, media_type=reply.content_type)
