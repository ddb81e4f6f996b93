"""What ``allocation=`` accepts by name, readable without TensorFlow."""

BY_SHAPE: tuple[str, ...] = ("layerwise", "er", "erk")
BY_SCORE: tuple[str, ...] = ("global", "plsr")
ALLOCATIONS: tuple[str, ...] = ("layerwise", "global", "er", "erk", "plsr")
