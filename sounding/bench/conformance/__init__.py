"""Conformance checks of the protocols of model servers, for any server.

Each check sends one or a few requests and compares the responses with the protocol's public
documentation. No check needs a capable model: they test lengths, finish reasons, shapes, order and
refusals, never the content of an answer.
"""
