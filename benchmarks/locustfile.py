"""For people who live in Locust: users who embed one text after the other, in any dialect.

    locust -f benchmarks/locustfile.py --headless -u 100 -r 100 -t 30s -H http://127.0.0.1:3000
    CARPOOL_DIALECT=openai CARPOOL_TOKENS=128 locust ...

`carpool bench` needs a fraction of the CPU for a request, and in an open loop measures from when it was due;
this is for those who want Locust's own pages and shapes. It needs `pip install locust`.
"""

from __future__ import annotations

import os
import random
from typing import Any

from locust import FastHttpUser, constant, events, task

from carpool.bench import units
from carpool.bench.dialects import Target
from carpool.bench.inputs import generate_texts

TEXTS = generate_texts(*units.span(os.environ.get("CARPOOL_TOKENS", "10-50")))
DIALECT = os.environ.get("CARPOOL_DIALECT", "native")


@events.init.add_listener
def check(environment: Any, **_: Any) -> None:
    """A wrong dialect is said at the start."""
    Target("http://localhost", DIALECT).encode(TEXTS[0])


class Embedder(FastHttpUser):
    """Asks again as soon as it is answered."""

    wait_time = constant(0)

    @task
    def embed(self) -> None:
        """One text, which nobody else asks for at the same time."""
        target = Target(self.host or "", DIALECT)
        body = target.encode(random.choice(TEXTS)).partition(b"\r\n\r\n")[2]
        self.client.post(target.path, data=body, headers={"content-type": "application/json"}, name=DIALECT)
