"""Prove: that a conversion changed nothing but the blur."""
