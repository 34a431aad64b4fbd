"""Training of the volumetric network."""
