"""mosec, as its documentation has it: one worker process with dynamic batching.

python mosec_server.py --port PORT --address 127.0.0.1, with MODEL, BATCH and WAIT_MS in the environment
"""

import os

import mosec

from benchmarks.peers.model import load

JPEG = b"\xff\xd8"


class Worker(mosec.Worker):
    """One process; the front, in Rust, gives it a list where batches may be larger than 1."""

    def __init__(self):
        super().__init__()
        self.model = load(os.environ["MODEL"])

    def deserialize(self, data):
        """A picture as it is, or what is in the JSON."""
        return data if data.startswith(JPEG) else super().deserialize(data)["data"]

    def forward(self, data):
        """A batch of inputs."""
        return self.model(data)

    def serialize(self, data):
        """The answer is JSON already."""
        return data


if __name__ == "__main__":
    server = mosec.Server()
    limits = {"max_batch_size": int(os.environ["BATCH"]), "max_wait_time": int(os.environ["WAIT_MS"])}
    server.append_worker(Worker, num=1, timeout=30, route="/predict", **limits)
    server.run()
