"""The drawn test world, written in official formats."""
