"""Where a batch is run: in this process, in a worker process, or at an inference server."""
