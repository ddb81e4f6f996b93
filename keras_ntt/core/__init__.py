"""A Keras model as the other folders see it: no mask, no tangent kernel, no method."""
