"""Products on top of the engine: protocols over HTTP, a language server, the page."""
