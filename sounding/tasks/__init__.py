"""Problems and their graders: what a model is asked, and how an answer is judged."""
