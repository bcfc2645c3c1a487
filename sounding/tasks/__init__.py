"""Problems for a model, and graders of its answers."""
