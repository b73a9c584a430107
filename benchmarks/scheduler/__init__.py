"""The scheduler on simulated time: tables of its policies, the bars it must clear, and a picture."""
