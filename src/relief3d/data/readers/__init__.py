"""Public data sets on disk as sequences of scenes in the contract's conventions.

:func:`relief3d.data.readers.registry.open_dataset` opens one by name; every module here also has its own
``open_<dataset>``. Nothing is read before a scene is asked for, and nothing is decoded before a view is.
"""
