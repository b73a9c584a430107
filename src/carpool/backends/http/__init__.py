"""An inference server as a backend: a batch is one HTTP request to one upstream.

`backend` puts calls to it and keeps an eye on it, `target` reads its URL, `discovery` asks it what it is,
`pool`, `connection` and `reply` are a small HTTP/1.1 client for the batches, `ordinary` is aiohttp for what
that one does not do. What is said is the business of `wire/`.
"""

from carpool.backends.http.backend import HttpBackend as HttpBackend
