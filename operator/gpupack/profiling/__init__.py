"""Measuring a running engine: which points, in which order, by which client, and what they tell."""
