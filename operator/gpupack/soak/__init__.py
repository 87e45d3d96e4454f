"""Deterministic simulation: one seed drives a small cluster with faults, and rules are checked after every event."""
