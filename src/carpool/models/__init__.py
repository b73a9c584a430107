"""Named models: what they are, and how their files get onto this machine."""
