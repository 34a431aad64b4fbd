"""Metrics of cameras, depth and meshes; each module names its protocol."""
