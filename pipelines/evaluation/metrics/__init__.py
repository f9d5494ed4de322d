"""Metrics: pure functions from questions, answers and truth to figures."""
