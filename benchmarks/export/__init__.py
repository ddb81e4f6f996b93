"""Sizes and latency of exported files, and what runs them as predicted."""
