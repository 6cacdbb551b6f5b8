"""Decide: what is done at each site of one model, and where the edits for it go."""
