"""Benchmarks of speed against this machine's limits and against other implementations."""
