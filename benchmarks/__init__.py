"""Programs that measure speed, accuracy and exported files, and that look for faults."""
