"""Level 5: training loop, schedules, checkpoints and resume."""
