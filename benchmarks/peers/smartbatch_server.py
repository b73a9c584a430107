"""SmartBatch, as its documentation has it: a registered model behind its own routes.

uvicorn benchmarks.peers.smartbatch_server:app, with CASE, BATCH and WAIT_MS in the environment

It encodes results itself, so here alone the JSON of the model is read first: 40 us for a vector.
"""

import json
import os

from smartbatch import batch, register
from smartbatch.main import app  # noqa: F401  # what uvicorn serves

from benchmarks.peers.model import load

model = load(os.environ["CASE"])


@register(name="peer")
@batch(max_batch_size=int(os.environ["BATCH"]), max_wait_time=int(os.environ["WAIT_MS"]) / 1000)
def predict(texts):
    """It calls this in a thread, a batch after the other."""
    return [json.loads(answer)["result"] for answer in model(texts)]
