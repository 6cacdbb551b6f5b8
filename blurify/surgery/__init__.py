"""Operate: carry a plan out on a model, in place; and undo it."""
