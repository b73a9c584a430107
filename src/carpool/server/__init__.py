"""HTTP in front of the batchers: what is served, the ASGI app, and the process that listens."""
