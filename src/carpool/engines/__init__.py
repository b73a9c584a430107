"""What runs inside a worker process: the libraries that compute, each behind one narrow module.

Nothing here knows of requests, queues, sockets or event loops: texts go in, encoded results come out.
"""
