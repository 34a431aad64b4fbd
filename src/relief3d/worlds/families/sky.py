"""Daylight: sun, sky colours and ambient light for outdoor families."""

from __future__ import annotations

import math

import numpy as np

from relief3d.worlds.builder import WorldBuilder


def daylight(b: WorldBuilder) -> None:
    """A random time of day and weather; about a quarter of the worlds are overcast."""
    rng = b.rng
    elevation = rng.uniform(math.radians(15), math.radians(65))
    overcast = rng.random() < 0.25
    low = math.exp(-elevation * 2.0)
    warm = np.array([1.0, 0.95 - 0.3 * low, 0.88 - 0.55 * low])
    strength = rng.uniform(0.25, 0.6) if overcast else rng.uniform(1.8, 3.0)
    b.sun(rng.uniform(0, math.tau), elevation, warm * strength, 0.05 if overcast else 0.008)
    grey = rng.uniform(0.45, 0.8)
    blue = np.array([0.2, 0.38, 0.75]) * rng.uniform(0.7, 1.2)
    zenith = np.full(3, grey) * 0.9 if overcast else blue
    horizon = np.full(3, grey) if overcast else np.array([0.68, 0.78, 0.9]) * rng.uniform(0.8, 1.1)
    b.sky[0:3], b.sky[3:6] = zenith, horizon
    above = 0.55 * zenith + 0.45 * horizon
    b.sky[6:9] = above * (1.1 if overcast else rng.uniform(0.6, 0.9))
    b.sky[9:12] = above * 0.35 * np.array([1.0, 0.93, 0.82])
    b.sky[12] = rng.random()
    b.sky[13] = rng.uniform(0, 3)
