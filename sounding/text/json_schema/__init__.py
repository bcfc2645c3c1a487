"""JSON schemas, read for constrained decoding: what they say, and what can be enforced of it.

`document` checks a schema and resolves its references; `patterns` translates its regular
expressions; `json_values` lowers it to what llguidance enforces in JSON; `strings` and `arguments`
do the same for values and calls that the prompt format writes without JSON. What cannot be held is
a ValueError that names the keyword and its place.
"""
