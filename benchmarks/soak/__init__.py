"""Processes that are killed, a long run, and what masks cost."""
