"""Signs of masked gradients: an attack fails because gradients mislead it, not because the network is robust."""

from __future__ import annotations

from isopath.robustness.result import Robustness


def signs(found: Robustness, flat: int, broken: int = 0) -> tuple[str, ...]:
    """What looks like masked gradients, in words; empty where nothing does.

    A white-box attacker knows all that a transferring one knows, and an attacker who may move an input anywhere
    reaches one of another class. Where the measurement says otherwise, it is the attack that failed (Athalye et al.
    2018, arXiv 1802.00420, section 3.1; Carlini et al. 2019, arXiv 1902.06705).

    Args:
        found: what was measured.
        flat: at how many of the rows that are right without an attack the loss has no gradient in the inputs.
        broken: at how many of them an entry of it is not finite.
    """
    white, large = found.white_box, found.large
    transfers = {f"member {found.source}": found.member, "the surrogate": found.surrogate}
    words = [
        f"transfer from {source} is stronger than white-box PGD ({score.right} of {score.rows} rows stay right, "
        f"against {white.right}): the gradients of the whole mislead its attacker"
        for source, score in transfers.items()
        if score is not None and score.right < white.right
    ]
    if large.right:
        words.append(
            f"{large.right} of {large.rows} rows stay right under white-box PGD at eps = {found.large_eps:.4g}, within "
            "which every valid input lies: the gradients lead nowhere, or one class fills the whole range"
        )
    if flat:
        words.append(
            f"at {flat} of the {found.clean.right} rows classified right the loss has no gradient in the inputs, so "
            "PGD cannot move them: the outputs saturate, or something rounds"
        )
    if broken:
        words.append(
            f"at {broken} of the {found.clean.right} rows classified right the gradient in the inputs is not finite, "
            "as where torch.where hides a branch that has none: PGD takes NaN as zero, and leaves those entries alone"
        )
    return tuple(words)
