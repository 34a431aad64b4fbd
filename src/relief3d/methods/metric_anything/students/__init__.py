"""Students of MetricAnything that need no prompt: what they learn from, how, and how well they do."""
