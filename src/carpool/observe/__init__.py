"""What can be seen from outside: facts, and the two observers that come with carpool, metrics and the log."""
