"""Scene surfaces: meshes and depth rendered from them."""
