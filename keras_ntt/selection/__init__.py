"""From scores to masks: how many entries, in which pattern, and when."""
