"""Measuring a model: bits per byte, filled lines, programs that pass their tests.

Nothing here knows networks or engines: what completes text or scores tokens is handed in.
"""
