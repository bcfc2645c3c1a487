"""The state of a sequence between chunks, independent of the implementation of the network.

The C++ network (`native`) and the PyTorch reference (`model`) each bring their own storage of rows;
the engine handles both alike.
"""
