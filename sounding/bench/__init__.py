"""Speed benchmarks, compared with this machine's limits and with other implementations."""
