"""The decisions: who travels with whom, and when. No I/O, no clock, no event loop: `now` is an argument."""
