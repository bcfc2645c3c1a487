"""Serve the engine over HTTP, in the protocols that editors, agents and SDKs already speak."""
