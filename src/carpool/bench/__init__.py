"""Measure an inference server from outside: a load generator, its report, comparisons and tuning.

What is here is a stranger to the server: it knows URLs and what goes over the wire, and imports no server code.
"""
