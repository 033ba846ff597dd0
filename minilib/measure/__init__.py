"""What a model knows, what an edit did, and what is left of what it was to forget."""
