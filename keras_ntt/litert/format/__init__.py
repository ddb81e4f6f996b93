"""Bytes of a LiteRT file: tensors, encodings, sizes."""
