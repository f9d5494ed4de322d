"""Datasets of boxes with category names."""
