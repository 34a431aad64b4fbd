"""VFM-Recon (arXiv 2603.12657): posed video to a surface through scale-aligned foundation depth."""
