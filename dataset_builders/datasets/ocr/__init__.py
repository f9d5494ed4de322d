"""Datasets of written words and documents."""
