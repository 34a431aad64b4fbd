"""Level 3: building blocks of networks, written once for all models. Filled by the work that needs them."""
