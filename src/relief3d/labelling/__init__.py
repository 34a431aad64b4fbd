"""Level 5: pseudo-labels and data engines at scale."""
