"""How long a step takes, beside others and to a floor, and how long imports take."""
