"""Scores of networks, alone and along a path."""

from isopath.evaluate.scores import Evaluation, agreement, evaluate, evaluate_at

__all__ = ["Evaluation", "agreement", "evaluate", "evaluate_at"]
