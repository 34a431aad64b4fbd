"""One module per paper; each names its experiments in ``EXPERIMENTS``."""
