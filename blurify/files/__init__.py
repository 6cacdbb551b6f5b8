"""Keep: models by name or file, converted models in files, and back."""
