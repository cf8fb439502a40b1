"""Layers, the optimiser's step and normal numbers, by what is fastest on each platform."""
