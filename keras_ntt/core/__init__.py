"""A Keras model as the rest sees it: no mask, no tangent kernel, no method."""
