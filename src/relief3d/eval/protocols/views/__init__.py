"""Multi-view and video benchmarks: N-view geometry, cameras, video depth."""
