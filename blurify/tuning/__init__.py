"""Tuning: weights that fit blurred features, taught by the original on unlabelled pictures."""
