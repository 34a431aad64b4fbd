"""Metric depth from one picture, with or without a sparse metric prompt: Depth Pro, MetricAnything, MoGe-2."""
