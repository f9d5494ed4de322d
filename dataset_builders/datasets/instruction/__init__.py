"""Datasets of conversations about whole images and regions."""
