"""``relief3d train``: recipes, configuration files, plans and runs."""
