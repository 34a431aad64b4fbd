"""Tiny files made by code for tests: good ones of every kind, and the ways in which they go bad."""
