"""Checks of the protocols that a model server speaks, for any server.

Each check sends a request or a few, and holds what comes back against the protocol's public
documentation. None needs a clever model: lengths, ends, shapes, order and refusals are checked,
never what is said.
"""
