"""Level 3.5: keypoints and matches between pictures."""
