"""What OpenAPI says beside what FastAPI knows: examples that work, and what the GET routes answer now.

It knows schemas and replies, and nothing of what is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import msgspec
from fastapi import FastAPI

from carpool.errors import CarpoolError
from carpool.wire.base import JSON, Reply, Route

_ERROR = "Refused or failed."
_BINARY = {"schema": {"type": "string", "format": "binary"}}


def request_body(route: Route) -> dict[str, Any]:
    """The body of a batched route, with an example for each dialect that meets there."""
    schemas = route.request_schema.get("anyOf", [route.request_schema])
    examples = {", ".join(schema["required"]): {"value": example_of(schema)} for schema in schemas}
    content: dict[str, Any] = {JSON: {"schema": route.request_schema, "examples": examples}}
    return {"required": True, "content": content | dict.fromkeys(route.media_types, _BINARY)}


def responses(route: Route) -> dict[int | str, dict[str, Any]]:
    """What a batched route may answer, by status."""
    answers: dict[int | str, dict[str, Any]] = {
        status: {"content": _error_content(route, status), "description": _ERROR} for status in route.statuses
    }
    answers[200] = {"content": {JSON: {"schema": route.response_schema}}, "description": "Answered."}
    return answers


def example_of(schema: Mapping[str, Any]) -> Any:
    """The schema's own example, or one made of its parts: of an object all that it must have."""
    if "example" in schema:
        return schema["example"]
    if schema["type"] == "array":
        return [example_of(schema["items"])]
    return {name: example_of(schema["properties"][name]) for name in schema["required"]}


def show_answers(app: FastAPI, reads: Mapping[str, Callable[[], Reply]]) -> None:
    """Have OpenAPI show what these GET routes answer when it is first asked for."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            paths = describe()["paths"]
            for path, read in reads.items():
                if path in paths:
                    with suppress(CarpoolError):  # a model that has been drained has nothing to show
                        _show_answer(path, paths[path]["get"]["responses"], read())
        return describe()

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI has it


def _show_answer(path: str, answers: dict[str, Any], reply: Reply) -> None:
    if reply.body and reply.status == 200:
        answers["200"]["content"] = {reply.content_type: {"example": msgspec.json.decode(reply.body)}}
    if path.endswith(("/health", "/ping", "/")):
        answers["503"] = {"description": "Nothing can be served now."}
    if path.endswith("/ready"):
        answers["400"] = {"description": "The same."}


def _error_content(route: Route, status: int) -> dict[str, Any]:
    content: dict[str, Any] = {JSON: {"schema": route.error_schema}}
    if status in route.plain:
        content["text/plain"] = {"schema": {"type": "string"}}
    return content
