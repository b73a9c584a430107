"""Whether the carpool in this container is healthy, as the image's health check asks every few seconds.

It looks for the port where carpool does, but for flags, without importing it: that takes a quarter of a second
of the core that the server may be using, and this a twentieth.
"""

import http.client
import os
import tomllib
from pathlib import Path

file = Path("config.toml")
server = tomllib.loads(file.read_text()).get("server", {}) if file.exists() else {}
port = os.environ.get("CARPOOL_PORT") or os.environ.get("PORT") or server.get("port", 3000)
connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=4)
connection.request("GET", "/health")
raise SystemExit(connection.getresponse().status != 200)
