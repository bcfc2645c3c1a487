"""What a sequence must remember between chunks, whichever implementation of the network runs it.

Plain values and buffers, below the native network (`native`) and the PyTorch reference (`model`):
each brings its own storage of rows, and the engine cannot tell which it was given.
"""
