"""FastAPI with the model in its process: a request at a time, or in batches by `batched`.

uvicorn benchmarks.peers.fastapi_server:app, with CASE, BATCH and WAIT_MS in the environment; BATCH=1 is without
batches
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import batched
from fastapi import FastAPI, Response
from pydantic import BaseModel

from benchmarks.peers.model import load

CASE, BATCH, WAIT_MS = os.environ["CASE"], int(os.environ["BATCH"]), float(os.environ["WAIT_MS"])

app = FastAPI()
model = load(CASE)
thread = ThreadPoolExecutor(1)  # the model is for one caller at a time


class Body(BaseModel):
    """A request."""

    data: str


async def in_thread(text):
    """What takes time must not block the event loop."""
    return (await asyncio.get_running_loop().run_in_executor(thread, model, [text]))[0]


async def at_once(text):
    """What takes none need not go through a thread."""
    return model([text])[0]


@batched.aio.dynamically(batch_size=BATCH, timeout_ms=WAIT_MS)
def in_batches(texts: list[str]) -> list[bytes]:
    """It calls this in a thread, a batch after the other."""
    return model(texts)


answer = in_batches if BATCH > 1 else at_once if CASE == "noop" else in_thread


@app.post("/predict")
async def predict(body: Body) -> Response:
    """The answer is JSON already."""
    return Response(await answer(body.data), media_type="application/json")
