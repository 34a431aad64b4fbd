"""The labelers; found by name in :mod:`relief3d.labelling.registry`."""
