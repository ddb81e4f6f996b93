"""Which channels of a model belong together: the channel dependency graph (DepGraph, Fang 2023)."""
