"""One network in several processes: a mesh of them, and what each holds, computes and sends.

Started by torchrun; with one process nothing here does anything. The network knows nothing of it:
weights are sharded by FSDP2, experts and sequences are divided by objects that are put in the place
of `ops.experts` and of a state's lists of rows. See docs/clusters.md.
"""
