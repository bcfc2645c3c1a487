"""The network on the C++ kernels: NumPy buffers in and out, no PyTorch.

`describe` makes the structs that point the kernels to the weights, `rows` and `state` store
sequence states, `network` is the interface to the engine.
"""
