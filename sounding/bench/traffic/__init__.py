"""Simulated clients of a server: a typist, a crowd of editors and agents, hostile clients.

All traffic uses the protocols of real clients, so it can measure any server that supports them.
Nothing is imported from our own server.
"""
