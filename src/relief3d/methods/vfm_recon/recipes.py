"""Recipes of VFM-Recon."""

from __future__ import annotations

from relief3d.methods.vfm_recon.volume.recipes import RECIPES

__all__ = ["RECIPES"]
