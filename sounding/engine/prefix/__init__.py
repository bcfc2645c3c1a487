"""Prefixes that were computed before: kept in memory, on disk, and found again."""
