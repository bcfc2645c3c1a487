"""HTTP itself, below every protocol: routes' checks, streaming, errors, access, the page."""
