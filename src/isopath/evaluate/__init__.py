"""Scores of networks, alone and along a path."""

from isopath.evaluate.footprint import Footprint, footprint
from isopath.evaluate.scores import Evaluation, agreement, evaluate, evaluate_at

__all__ = ["Evaluation", "Footprint", "agreement", "evaluate", "evaluate_at", "footprint"]
