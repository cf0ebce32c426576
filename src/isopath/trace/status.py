"""Why a trace stopped, as a word and a sentence."""

from __future__ import annotations

from typing import Literal

Status = Literal["running", "converged", "stationary", "budget_spent", "step_too_small", "target_not_reached"]

REASONS: dict[str, str] = {
    "running": "the trace has not ended.",
    "converged": "the objective has reached its target.",
    "sparse": "{achieved}, as asked.",
    "sparsest": "{achieved}; more, however few at a time, broke the tolerance of {tolerance:g}.",
    "exhausted": "{achieved}; no more can go, and the tolerance of {tolerance:g} allows it.",
    "settled": "the objective has come down to {share:.1%} of where it started and no longer falls.",
    "stationary": "no direction that the tolerance allows lowers the objective any further; raise the tolerance, or "
    "give more reference rows.",
    "flat": "the objective's gradient has no component left that the kept outputs do not see; raise the tolerance.",
    "undone": "over two fifths of the budget the corrector undid what the predictor gained; raise the tolerance "
    "or give more reference rows.",
    "steps": "all {steps} steps are taken and the objective was still falling; give a larger max_steps to go on.",
    "evaluations": "the {evaluations:.0f} gradient evaluations allowed are spent; give a larger max_evaluations.",
    "drift": "steps shorter than {length:.1e} still broke the tolerance of {tolerance:g}; raise the tolerance, or give "
    "more reference rows.",
    "objective": "no step, however short, lowered the objective on its batch; it is at a minimum, or its gradient is "
    "wrong or noisier than its slope: try a larger batch.",
    "target": "the exact target set was not reached within the tolerance: {achieved}; raise the tolerance, ask for "
    "less, or give more steps.",
    "short": "the gradient evaluations allowed are spent, {evaluations:.0f}, before the target was reached: "
    "{achieved}; give a larger max_evaluations or tolerance, or ask for less.",
    "nothing": " Nothing is kept: drift is not measured.",
    "estimated": " Of tasks whose rows are not kept the drift is an estimate from curvature or drawn rows: nothing "
    "checks it.",
    "unsplit": " The reference is too small to split: the same rows steer and judge.",
}


def sentence(key: str, **values: object) -> str:
    """The reason for a key, its numbers filled in, with a capital."""
    text = REASONS[key].format(**values)
    return text if text.startswith(" ") else text[0].upper() + text[1:]
