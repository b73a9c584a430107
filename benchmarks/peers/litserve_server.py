"""LitServe, as its documentation has it: batching in the API class, and its fast queue for high throughput.

python litserve_server.py PORT, with MODEL, BATCH and WAIT_MS in the environment
"""

import json
import os
import sys

import litserve
from fastapi import Response

from benchmarks.peers.model import load

MODEL = os.environ["MODEL"]


class Served(litserve.LitAPI):
    """Its default `batch` and `unbatch` pass lists through."""

    def setup(self, device):
        """Called in the worker process."""
        self.model = load(MODEL)

    def decode_request(self, request):
        """The input in a request body."""
        return request["data"]

    def batch(self, inputs):
        """A list of inputs as it is."""
        return inputs

    def predict(self, inputs):
        """A batch."""
        return self.model(inputs)

    def unbatch(self, output):
        """One answer for each."""
        return output

    def encode_response(self, output):
        """A short answer is faster through its own JSON, a vector as the JSON that it is already."""
        return json.loads(output) if MODEL == "noop" else Response(output, media_type="application/json")


if __name__ == "__main__":
    api = Served(max_batch_size=int(os.environ["BATCH"]), batch_timeout=int(os.environ["WAIT_MS"]) / 1000)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
