"""Level 4: losses on predictions and batches; a loss never reads a file and never sees a network."""
