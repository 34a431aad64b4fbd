"""``relief3d repro``: miniature tables of papers, arm by arm and seed by seed."""
