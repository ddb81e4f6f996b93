"""The published comparison of methods of pruning at initialization."""
