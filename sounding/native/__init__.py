"""The network run by the C++ kernels alone: NumPy buffers in and out, no PyTorch.

`describe` tells the kernels of weights where they lie, `rows` and `state` are what sequences
remember, `network` is what the engine runs.
"""
