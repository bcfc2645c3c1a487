"""Code completion inside an editor, over the language server protocol."""
