"""Pictures to a scene by a multi-view network: loading, memory, chunks, points, depth at original resolution."""
