"""Other programs to measure beside."""
