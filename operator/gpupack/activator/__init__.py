"""The activator: where requests wait for a serving that sleeps.

A small HTTP proxy. While a serving has no replica it is the only endpoint of its Service: it holds requests, tells the
operator how many there are, and hands them on when an engine is ready. It decides nothing and keeps nothing.
"""
