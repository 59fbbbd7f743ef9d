"""Quantization: grids, ranges, rounding, and which values of a model get which grid. Pure arithmetic; runs nothing."""
