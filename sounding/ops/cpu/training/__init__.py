"""Twins for training: kernels for all but matrix products, with torch's products.

They maximise throughput. Unlike the twins for inference they do not promise the same bits for a row
in every batch, because torch's products do not; `use_backend("training")` chooses them.
"""
