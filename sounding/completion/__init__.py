"""Code completion at a cursor: prompt, stopping, trimming and ranking."""
