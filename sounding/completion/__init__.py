"""Code completion at a cursor: prompt, stopping, trimming and ranking."""

# Editors suggest a missing line if its confidence is at least this. Above it, at least 40 % of the
# lines suggested in held-out packages are exactly right (`scripts/fit-confidence`).
SHOWN_FROM = 0.15
