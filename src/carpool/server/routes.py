"""Which routes there are, and on which path which dialects meet: the one place that knows all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version

from carpool.errors import CarpoolError
from carpool.server.service import Service
from carpool.wire import (
    cohere_routes,
    kserve_v2_routes,
    native,
    openai_routes,
    predict,
    tei_routes,
)
from carpool.wire.base import Reply, Route
from carpool.wire.inputs import by_field

_EMBED = by_field(native.EMBED, b'{"input":', {"inputs": tei_routes.EMBED})
_PREDICT = by_field(predict.PREDICT, b'{"data":', {"inputs": tei_routes.PREDICT})
_RERANK = by_field(tei_routes.RERANK, b'{"texts":', {"documents": cohere_routes.RERANK})

_EVERYWHERE = (
    _EMBED,
    _PREDICT,
    _RERANK,
    tei_routes.EMBED_ALL,
    tei_routes.EMBED_SPARSE,
    tei_routes.SIMILARITY,
)

# In front of an upstream these are passed through: only it has its tokenizer.
_LOCAL = (
    tei_routes.TOKENIZE,
    tei_routes.DECODE,
    replace(tei_routes.EMBED, path="/"),  # what the model does usually
    replace(cohere_routes.RERANK, path="/v1/rerank"),
    replace(cohere_routes.RERANK, path="/v2/rerank"),
)


def batched_routes(service: Service) -> tuple[Route, ...]:
    """The POST routes of a service, which both lanes answer."""
    name = service.models[0].name
    named = (
        openai_routes.embeddings(name, service.serves),
        kserve_v2_routes.infer(name),
        kserve_v2_routes.infer(name, "/versions/1"),
    )
    own: tuple[Route, ...] = _EVERYWHERE
    if service.models[0].takes == "data":
        own = tuple([predict.PREDICT_DATA if route.path == predict.PREDICT.path else route for route in own])
    return (*own, *named, *(_LOCAL if service.passthrough is None else ()))


def nearest_dialect(path: str) -> Callable[[CarpoolError], Reply]:
    """In whose words a path that is not served is refused."""
    if path.startswith("/v1/"):
        return openai_routes.encode_error
    return kserve_v2_routes.encode_error if path.startswith("/v2") else native.encode_error


def read_routes(service: Service) -> dict[str, tuple[Callable[[], Reply], str]]:
    """The GET routes of a service: what answers, and a summary."""
    model = service.models[0]
    own, trouble = f"/v2/models/{model.name}", service.trouble
    routes: dict[str, tuple[Callable[[], Reply], str]] = {
        "/health": (service.health, "Whether requests can be served now; 503 with the reason if not."),
        "/ping": (lambda: tei_routes.encode_health(trouble()), "The same without a word."),
        "/v1/models": (lambda: openai_routes.encode_models(model.names()), "The model, by its names."),
        "/v2": (
            lambda: kserve_v2_routes.encode_server(version("carpool")),
            "The server, in KServe V2's words.",
        ),
        "/v2/health/live": (
            lambda: kserve_v2_routes.encode_health(None, "live"),
            "Whether the server runs.",
        ),
        "/v2/health/ready": (
            lambda: kserve_v2_routes.encode_health(trouble(), "ready"),
            "Whether requests can be served now; 400 if not.",
        ),
        f"{own}/ready": (
            lambda: kserve_v2_routes.encode_model_ready(model.name, trouble()),
            "The same of the model.",
        ),
        own: (
            lambda: kserve_v2_routes.encode_model(model.name, model.told().get("dimensions", -1)),
            "The model's inputs and outputs.",
        ),
    }
    if service.passthrough is None:
        routes["/"] = (lambda: tei_routes.encode_health(trouble()), "The same without a word.")
        routes["/info"] = (lambda: _info(service), "What is served, in the words of Text Embeddings Inference.")
    return routes


def _info(service: Service) -> Reply:
    model = service.models[0]
    told, policy, limits = model.told(), model.batcher.policy, model.batcher.limits
    return tei_routes.encode_info(
        model=model.title.partition(",")[0],
        max_tokens=told.get("max_tokens", 0),
        max_batch_size=policy.max_batch_size,
        max_batch_tokens=policy.max_batch_cost,
        max_queue_size=limits.max_queue_size,
        version=version("carpool"),
    )
