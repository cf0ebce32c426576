"""Adversarial inputs: `PGD`, the official `AutoAttack`, and `attack`, which runs either on a module."""

from isopath.attacks.attack import Attack, attack
from isopath.attacks.autoattack import AutoAttack
from isopath.attacks.pgd import PGD, Norm, Rows, cross_entropy_rows
from isopath.attacks.victim import Victim

__all__ = ["PGD", "Attack", "AutoAttack", "Norm", "Rows", "Victim", "attack", "cross_entropy_rows"]
