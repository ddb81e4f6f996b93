"""Layers with fewer weights."""
