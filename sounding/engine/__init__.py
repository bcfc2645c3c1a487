"""Running a model for somebody: sampling and generation, from tokens to tokens."""
