"""Code at a cursor: prompt, stopping, trimming and choosing what to offer."""
