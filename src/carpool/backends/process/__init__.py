"""A model in a worker process: the parent's end, the child's end, and the frames between them."""
