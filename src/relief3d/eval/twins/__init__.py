"""Procedural twins: the same protocols on worlds that anyone can render."""
