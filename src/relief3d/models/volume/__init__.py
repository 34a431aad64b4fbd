"""Volumetric networks: posed pictures and depth to a signed distance field."""
