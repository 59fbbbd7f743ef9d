"""Low-rank splitting: a layer as two or three thin ones, which they are, and how the graph is rewritten."""
