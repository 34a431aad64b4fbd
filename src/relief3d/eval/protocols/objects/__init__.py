"""Objects from one image: shape, layout, texture and preference."""
