"""``relief3d label``: options and wiring."""
