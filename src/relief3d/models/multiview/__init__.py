"""Multi-view feed-forward reconstruction: VGGT, pi3, Pi3X and the Reliev3R network."""
