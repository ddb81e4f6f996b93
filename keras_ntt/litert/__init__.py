"""LiteRT (TFLite) files: read, encode sparsely, check, report.

`flatbuffer` reads and writes files, `encoding` stores arrays sparsely, `choose` decides how each
weight is stored, `rewrite` does it, `xnnpack` predicts what the runtime will do with the result,
`checks` runs it, `report` says what came out.
"""
