"""HTTP below all protocols: validation, streaming, errors, access control, the web page."""
