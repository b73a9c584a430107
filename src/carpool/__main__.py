"""`python -m carpool` is `carpool`."""

from carpool.cli import main

main()
