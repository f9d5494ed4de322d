"""Recipes: what can be run, and with which arguments."""
