"""Level 6.5: whole jobs, from files on disk to results on disk."""
