"""Pruning of trained models from unlabelled inputs: one solver a file."""
