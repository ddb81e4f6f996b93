"""Files for TensorFlow Lite Micro: pruned weights that its DECODE operator unpacks, no ballast.

`decode` and `huffman` are the byte format, both ways. `graph` puts DECODE operators into a model
and takes them out again; `slim` removes what the runtime does not read; `choose` picks a form for
each weight; `cut` and `arena` keep the memory within a limit; `report` and `c_array` say and write
what a firmware needs.
"""
