"""Benchmark protocols: one module per benchmark, each with its reader, its exact rules and a procedural twin."""
