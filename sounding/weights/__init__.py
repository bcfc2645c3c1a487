"""Files in, objects out: checkpoints in the published layout, conversion, and what fits where.

Loading weights never executes code: safetensors is the only format read or written.
"""
