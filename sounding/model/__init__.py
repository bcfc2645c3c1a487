"""The network, independent of files, devices, requests and optimizers."""
