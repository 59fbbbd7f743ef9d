"""Pruning: what goes, how the graph is rewired, and how the accuracy is won back. Runs nothing by itself."""
