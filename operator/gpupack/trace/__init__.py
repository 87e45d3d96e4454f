"""Ticks on disk: one (Observation, Outcome) a line, written by the operator and read by `gpupack replay`."""
