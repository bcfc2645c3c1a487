"""The engine behind HTTP: the protocols that editors, agents and SDKs speak already."""
