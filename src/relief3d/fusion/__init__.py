"""Level 3: depth maps into surfaces and clouds, cleaning, texture."""
