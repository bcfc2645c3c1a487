"""A conversation with tools: who answers and what the tools do are handed in."""
