"""The operations of the paper as functions of tensors.

Each file has one idea, in plain differentiable PyTorch that reads like the formula.

Shape letters, used in every signature of the package:
  b sequence, t token of a chunk (sequences of a ragged chunk laid end to end), s entry that a query
  may see, c hidden channel, m residual stream, h head, d channel of a head or entry, g group,
  r token within a group, e expert, k choice, v vocabulary; o and i are a linear's output and input;
  _ a size that differs between sequences.
"""
