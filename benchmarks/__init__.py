"""Measurements of carpool, each a command of its own; what they printed is committed in `results/`."""
