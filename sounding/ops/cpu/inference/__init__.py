"""Native inference: whole networks for a chunk in one call, from weights as they are stored."""
