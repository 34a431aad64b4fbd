"""Level 1: camera geometry in pure torch, batched over any leading dimensions.

Import from the modules (``from relief3d.geometry.projection import project``); nothing is re-exported here
so that the name of the module says which mathematics is meant.
"""
