"""carpool as a model server beside its peers, a command for each case: `python benchmarks/peers/run.py`."""
