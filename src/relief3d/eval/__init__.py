"""Level 4: measuring results against references."""
