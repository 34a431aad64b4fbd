"""Level 0: the data contract, errors, devices, seeds, progress."""
