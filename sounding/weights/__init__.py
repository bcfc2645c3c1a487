"""Checkpoints in the published layout: reading, writing, conversion, and planning of memory.

Loading weights never executes code: safetensors is the only format read or written.
"""
