"""Channel pruning: whole channels are removed, and the model is an ordinary, smaller one."""
