"""MetricAnything: metric depth from sparse prompts, and students that need none (arXiv 2601.22054)."""
