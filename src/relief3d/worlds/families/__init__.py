"""Families of worlds: rooms, object arrangements, outdoor grounds, streets."""
