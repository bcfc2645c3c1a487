"""Code completion at a cursor: prompt, stopping, trimming and ranking."""

# Editors suggest a missing line if it is at least this likely to be exactly right. From here on
# at least 40 % of the lines suggested in held-out packages are (`scripts/fit-confidence`).
SHOWN_FROM = 0.15
