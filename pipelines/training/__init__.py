"""The training loop, its driver, and what they keep."""
