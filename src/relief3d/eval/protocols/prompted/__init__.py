"""Depth from an image and a sparse prompt: completion, super-resolution, radar, density."""
