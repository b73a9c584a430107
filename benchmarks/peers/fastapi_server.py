"""FastAPI with the model in its process: a request at a time, or in batches by `batched`.

uvicorn benchmarks.peers.fastapi_server:app, with MODEL, BATCH and WAIT_MS in the environment; BATCH=1 is
without batches
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import batched
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from benchmarks.peers.model import load

MODEL, BATCH, WAIT_MS = os.environ["MODEL"], int(os.environ["BATCH"]), float(os.environ["WAIT_MS"])

app = FastAPI()
model = load(MODEL)
thread = ThreadPoolExecutor(1)  # the model is for one caller at a time


class Body(BaseModel):
    """A request."""

    data: Any


async def in_thread(data):
    """What takes time must not block the event loop."""
    return (await asyncio.get_running_loop().run_in_executor(thread, model, [data]))[0]


async def at_once(data):
    """What takes none need not go through a thread."""
    return model([data])[0]


@batched.aio.dynamically(batch_size=BATCH, timeout_ms=WAIT_MS)
def in_batches(inputs: list[Any]) -> list[bytes]:
    """It calls this in a thread, a batch after the other."""
    return model(inputs)


answer = in_batches if BATCH > 1 else at_once if MODEL == "noop" else in_thread


@app.post("/predict")
async def predict(body: Body) -> Response:
    """The answer is JSON already."""
    # To `batched` a list would be several inputs.
    data = tuple(body.data) if isinstance(body.data, list) else body.data
    return Response(await answer(data), media_type="application/json")


@app.post("/picture")
async def picture(request: Request) -> Response:
    """The body is a JPEG."""
    return Response(await answer(await request.body()), media_type="application/json")
