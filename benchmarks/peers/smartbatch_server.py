"""SmartBatch, as its documentation has it: a registered model behind its own routes.

uvicorn benchmarks.peers.smartbatch_server:app, with MODEL, BATCH and WAIT_MS in the environment

It encodes results itself, so here alone the JSON of the model is read first: 40 us for a vector.
"""

import json
import os

from smartbatch import batch, register
from smartbatch.main import app  # noqa: F401  # what uvicorn serves

from benchmarks.peers.model import load

model = load(os.environ["MODEL"])


# It refuses (429) what it expects to wait longer than 1.5 times the target. What it expects it learns from the
# time between batches, idle time included. After the pauses that it has here, while others are measured, it
# refused 99 % of 64 users with the default of 0.1 s, and 12 % with 30 s.
TARGET_SECONDS = 3600.0


@register(name="peer")
@batch(
    max_batch_size=int(os.environ["BATCH"]),
    max_wait_time=int(os.environ["WAIT_MS"]) / 1000,
    target_latency=TARGET_SECONDS,
)
def predict(inputs):
    """It calls this in a thread, a batch after the other."""
    return [json.loads(answer)["result"] for answer in model(inputs)]
