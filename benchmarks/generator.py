"""How much the load generator of `carpool bench` can do on a core, against a server that does next to nothing.

    python benchmarks/generator.py [--seconds 5] [--rounds 3]

The server is nginx with one worker, which answers every request with the same 27 bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from carpool.bench import report
from carpool.bench.dialects import Target
from carpool.bench.inputs import generate_texts
from carpool.bench.run import Plan, measure

NGINX = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; client_body_temp_path {folder}/bodies;
  server {{
    listen 127.0.0.1:{port};
    location / {{ default_type application/json; return 200 '{{"embedding":[0.1,0.2,0.3]}}'; }}
  }}
}}
"""
WARM_UP = 0.5  # seconds


@contextmanager
def nginx() -> Iterator[str]:
    """Its URL."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        configuration = Path(folder, "nginx.conf")
        configuration.write_text(NGINX.format(folder=folder, port=port))
        with subprocess.Popen(["nginx", "-c", str(configuration)], stderr=subprocess.DEVNULL) as process:
            try:
                wait_for(port)
                yield f"http://127.0.0.1:{port}"
            finally:
                process.terminate()


def wait_for(port: int) -> None:
    """Until something listens."""
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise SystemExit("nginx did not start")


def main() -> None:
    """A row for each load of each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    plans = [
        *(Plan(options.seconds, WARM_UP, rate=rate) for rate in (400.0, 10_000.0, 25_000.0)),
        *(Plan(options.seconds, WARM_UP, users=users) for users in (64, 1000)),
    ]
    print("| load | answered/s | failed | CPU us each | of a core | late p50 ms | late p99 | p50 ms | p99 |")
    print("|" + " --- |" * 9)
    with nginx() as url:
        target = Target(url)
        requests = [target.encode(text) for text in generate_texts(10, 50)]
        for _ in range(options.rounds):
            for plan in plans:
                results = measure(target, requests, plan)
                own, latency = results.generator, results.latency
                each = own.cpu_share / results.throughput * 1e6
                print(
                    f"| {plan.title} | {results.throughput:,.0f} | {results.failed} | {each:.1f} "
                    f"| {own.cpu_share:.0%} | {own.late_p50_ms:.2f} | {own.late_p99_ms:.2f} "
                    f"| {latency.p50:.2f} | {latency.p99:.2f} |",
                    flush=True,
                )
    print("\n" + "".join(f"- {key}: {value}\n" for key, value in report.machine().items() if key != "command"))


if __name__ == "__main__":
    main()
