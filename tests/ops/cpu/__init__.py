"""Native kernels beside the references they replace."""
