"""Datasets of expressions and captions tied to boxes."""
