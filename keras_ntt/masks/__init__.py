"""Which weights can have a mask, and a model that holds masks."""
