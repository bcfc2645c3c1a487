"""What clients do to a server, made up: somebody who types, and a crowd of editors and agents.

Everything goes through the protocols that real clients speak, so any server that speaks them can be
measured; nothing is imported from ours.
"""
