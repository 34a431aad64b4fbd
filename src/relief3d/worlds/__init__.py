"""Procedural worlds: seeded 3D places with exact truth, rendered by torch on CPU or GPU."""

from relief3d.worlds.config import WorldConfig, demo_config
from relief3d.worlds.generate import make_bank, make_world, make_worlds
from relief3d.worlds.renderer import RenderedViews
from relief3d.worlds.world import World

__all__ = ["RenderedViews", "World", "WorldConfig", "demo_config", "make_bank", "make_world", "make_worlds"]
