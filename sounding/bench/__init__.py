"""Speed, measured beside this machine's limits and beside other implementations."""
