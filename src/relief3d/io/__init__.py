"""Level 2: the only code that opens data files."""
