"""Single-image and multi-view metric depth, point maps, intrinsics and boundaries."""
