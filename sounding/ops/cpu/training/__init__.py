"""Twins for training: kernels for what is no matrix product, torch's products around them.

They go for throughput. Unlike the twins for inference they do not promise a row the same bits in
any company, because torch's products do not; `use_backend("training")` chooses them.
"""
