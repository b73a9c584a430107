"""Which routes there are, and on which path which dialects meet: the one place that knows all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.metadata import version

from carpool.errors import CarpoolError, NotFound
from carpool.server.models import OWN, ServedModel
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

_OPENAI_MODELS = "/v1/models"

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
    models = service.models
    routes = [*_routes_of(models.default, service.serves)]
    for model in models:
        routes += (
            replace(infer, model=model.name)
            for infer in (
                kserve_v2_routes.infer(model.name, path, takes_numbers=model.takes == "data")
                for path in ("", "/versions/1")
            )
        )
        prefix = f"{OWN}{model.name}"
        routes += (
            replace(route, path=f"{prefix}{route.path}".rstrip("/"), model=model.name)
            for route in _routes_of(model, model.serves)
        )
    return tuple(routes)


def _routes_of(model: ServedModel, serves: Callable[[str], bool]) -> tuple[Route, ...]:
    """What a model can do, on the paths on which it does it where it is the default one."""
    embeddings = openai_routes.embeddings(model.name, serves)
    everywhere: tuple[Route, ...] = _EVERYWHERE
    if model.takes == "data":
        everywhere = tuple(
            [predict.PREDICT_DATA if route.path == predict.PREDICT.path else route for route in everywhere]
        )
    return (*everywhere, embeddings, *(_LOCAL if model.passthrough is None else ()))


def nearest_dialect(path: str, routes: Iterable[Route] = ()) -> Callable[[CarpoolError], Reply]:
    """In whose words a path that is not served is refused: another model's, if it ends as one of its paths."""
    if path.startswith(OWN):
        tails = {route.path.removeprefix(f"{OWN}{route.model}"): route for route in routes if route.model}
        known = [tail for tail in tails if tail and path.endswith(tail)]
        return tails[max(known, key=len)].encode_error if known else native.encode_error
    if path.startswith("/v1/"):
        return openai_routes.encode_error
    return kserve_v2_routes.encode_error if path.startswith("/v2") else native.encode_error


def not_found(service: Service, path: str, routes: Iterable[Route]) -> CarpoolError:
    """What is said of a path that is not served."""
    if path.startswith((OWN, f"/v2{OWN}")) and service.models.under(path) is None:
        return service.models.not_found(f"there is no model at {path}")
    if path.startswith(f"{_OPENAI_MODELS}/"):
        return service.models.not_found(f"there is no model '{path.removeprefix(f'{_OPENAI_MODELS}/')}'")
    known = [route.path for route in routes if not route.path.startswith(OWN)]
    if service.models.only is None:
        known.append(f"{OWN}NAME/...")
    known += ["/health", "/metrics", "/docs"]
    return NotFound(f"there is no route {path}", f"allowed: {', '.join(known)}")


Read = tuple[Callable[[], Reply], str]


def read_routes(service: Service) -> dict[str, Read]:
    """The GET routes of a service: what answers, and a summary. What answers may raise a `CarpoolError`."""
    models, trouble = service.models, service.trouble
    routes: dict[str, Read] = {
        "/health": (service.health, "Whether requests can be served now; 503 with the reason if not."),
        "/ping": (lambda: tei_routes.encode_health(trouble()), "The same without a word."),
        _OPENAI_MODELS: (
            lambda: openai_routes.encode_models(models.names()),
            "The models, by their names.",
        ),
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
    }
    for model in models:
        routes |= _model_reads(service, model.name)
    if models.default.passthrough is None:
        name = models.default.name
        routes["/"] = (lambda: tei_routes.encode_health(trouble()), "The same without a word.")
        routes["/info"] = _info(service, name)
    return routes


def _model_reads(service: Service, name: str) -> dict[str, Read]:
    """One model's own. They look it up each time, as it may be served no more."""
    v2, own, find = f"/v2/models/{name}", f"{OWN}{name}", service.models.find
    ready: Read = (
        lambda: kserve_v2_routes.encode_model_ready(name, service.model_trouble(name)),
        "Whether the model can serve now; 400 if not.",
    )
    metadata: Read = (lambda: _encode_model(find(name)), "The model's inputs and outputs.")
    routes: dict[str, Read] = {
        f"{v2}/ready": ready,
        f"{v2}/versions/1/ready": ready,
        v2: metadata,
        f"{v2}/versions/1": metadata,
        f"{own}/health": (lambda: service.model_health(name), "Whether the model can serve now; 503 if not."),
    }
    for called in filter(None, (name, find(name).alias)):
        routes[f"{_OPENAI_MODELS}/{called}"] = _openai_model(service, called)
    if find(name).passthrough is None:
        routes[f"{own}/info"] = _info(service, name)
    return routes


def _openai_model(service: Service, called: str) -> Read:
    """A model by one of its names, which is the one that it is told by."""

    def read() -> Reply:
        service.models.find(called)
        return openai_routes.encode_model(called)

    return read, "The model, in OpenAI's words."


def _encode_model(model: ServedModel) -> Reply:
    return kserve_v2_routes.encode_model(model.name, model.takes == "data", model.told())


def _info(service: Service, name: str) -> Read:
    return (
        lambda: _encode_info(service.models.find(name)),
        "What is served, in the words of Text Embeddings Inference.",
    )


def _encode_info(model: ServedModel) -> Reply:
    told, policy, limits = model.told(), model.batcher.policy, model.batcher.limits
    return tei_routes.encode_info(
        model=model.title.partition(",")[0],
        max_tokens=told.get("max_tokens", 0),
        max_batch_size=policy.max_batch_size,
        max_batch_tokens=policy.max_batch_cost,
        max_queue_size=limits.max_queue_size,
        version=version("carpool"),
    )
