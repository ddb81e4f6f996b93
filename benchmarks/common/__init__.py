"""What several programs share: paths, tables, timing in turns, processes, networks."""
