"""Evaluation of named models on benchmark protocols."""
