"""Level 4: networks with their configurations and checkpoint adapters, one folder per family."""
