"""carpool as a proxy, measured against nginx and against the upstream itself."""
