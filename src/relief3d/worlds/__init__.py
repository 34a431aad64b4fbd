"""Procedural worlds: seeded 3D places with exact truth, rendered by torch on CPU or GPU."""

from relief3d.worlds.capture import Capture, demo_capture
from relief3d.worlds.config import WorldConfig, demo_config
from relief3d.worlds.effects import CameraEffects, apply_effects, phone_effects
from relief3d.worlds.flow import Flow, flow_between
from relief3d.worlds.generate import make_bank, make_world, make_worlds
from relief3d.worlds.meshing import visible_from, visible_surface
from relief3d.worlds.ranging import Scan, lidar_scan, radar_scan, rosette_pattern, spinning_pattern
from relief3d.worlds.renderer import RenderedViews
from relief3d.worlds.sensors import DepthSensor, sense_depth
from relief3d.worlds.sequences import ViewSequence, make_sequences
from relief3d.worlds.textures import TextureBank, make_texture_bank
from relief3d.worlds.world import World

__all__ = [
    "CameraEffects",
    "Capture",
    "DepthSensor",
    "Flow",
    "RenderedViews",
    "Scan",
    "TextureBank",
    "ViewSequence",
    "World",
    "WorldConfig",
    "apply_effects",
    "demo_capture",
    "demo_config",
    "flow_between",
    "lidar_scan",
    "make_bank",
    "make_sequences",
    "make_texture_bank",
    "make_world",
    "make_worlds",
    "phone_effects",
    "radar_scan",
    "rosette_pattern",
    "sense_depth",
    "spinning_pattern",
    "visible_from",
    "visible_surface",
]
