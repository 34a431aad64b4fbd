"""Level 7: the viewer behind ``relief3d view``."""

from relief3d.viewer.app import open_viewer

__all__ = ["open_viewer"]
