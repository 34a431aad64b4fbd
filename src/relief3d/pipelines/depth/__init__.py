"""``relief3d depth``: metric depth of pictures and video by a trained network, with or without a sparse prompt."""
