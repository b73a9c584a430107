"""Bytes to values and back, one dialect a file. No I/O, no clock; dialects do not know each other."""
