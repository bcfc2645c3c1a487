"""Measuring a model: bits per byte, filled lines, programs that pass their tests.

Independent of networks and engines: callers pass functions that complete text or score tokens.
"""
