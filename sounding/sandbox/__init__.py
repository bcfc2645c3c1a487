"""Running generated code in isolation: namespaces, limits, a list of allowed system calls."""
