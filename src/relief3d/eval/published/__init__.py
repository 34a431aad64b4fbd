"""Figures printed in the five papers, as tables to show beside our own."""
