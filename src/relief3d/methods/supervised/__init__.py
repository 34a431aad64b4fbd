"""Supervised training of multi-view networks on worlds whose truth is known."""
