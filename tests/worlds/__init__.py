"""Tests of the procedural worlds."""
