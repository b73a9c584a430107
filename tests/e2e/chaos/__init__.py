"""Upstreams that die, hang and lie; clients that vanish. Everyone else gets their answer or a clear error."""
