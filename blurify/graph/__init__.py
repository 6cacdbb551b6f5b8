"""See: run a model once, and find in the graph of what it did the places where it subsamples."""
