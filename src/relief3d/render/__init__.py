"""Level 2: depth and pictures of meshes and points, on the CPU first."""
