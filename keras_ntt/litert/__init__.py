"""LiteRT (TFLite) files: read, encode sparsely, check, report.

`format.flatbuffer` reads and writes files, `format.encoding` stores arrays sparsely,
`format.storage` lists how a weight can be stored, `format.rewrite` stores it, `xnnpack` predicts
what the runtime will do with the result, `runtime` runs it, and `report` describes the file.
"""
