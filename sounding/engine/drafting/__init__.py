"""Speculative decoding: draft several tokens, verify them in one forward.

`drafter` is the interface of a draft source, with one file per source; `selection` registers them
and chooses between them, by what `cost_model` measures.

A draft changes the speed, never the text: the token at every place is chosen from the network's
logits with the request's generator, exactly as without drafts, and a draft token is accepted if it
is the chosen one. Source: docs/architecture.md 11.
"""
