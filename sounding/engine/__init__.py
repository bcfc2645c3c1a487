"""The inference engine: scheduling, sampling, speculative decoding and the prefix cache."""
