"""A trained model to the smallest file that behaves the same."""
