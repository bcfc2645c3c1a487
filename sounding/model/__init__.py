"""The network. It knows no files, devices, requests or optimizers."""
