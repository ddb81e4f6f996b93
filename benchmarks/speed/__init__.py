"""How long a step takes, compared with others and a floor, and how long imports take."""
