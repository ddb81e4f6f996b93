"""From scores to masks: how many entries, in what pattern, when."""
