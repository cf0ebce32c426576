"""Sequences of tasks, as the field has them."""
