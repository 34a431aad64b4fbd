"""``relief3d mesh``: one coherent surface from posed or unposed pictures, through scale-aligned depth (VFM-Recon)."""
