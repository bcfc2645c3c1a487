"""Sounding: the DeepSeek-V4 system, small enough to own. Importing it does nothing."""
