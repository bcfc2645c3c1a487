"""Evaluation of a model: bits per byte, infilled lines, programs that pass their tests.

Does not depend on networks or engines: callers pass functions that complete text or score tokens.
"""
