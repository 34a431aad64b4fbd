"""Level 6: one folder per paper; methods never import one another."""
