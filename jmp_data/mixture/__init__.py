"""Which data sets are trained on together, how much of each, and which of their structures."""

from jmp_data.mixture.mixture import Member, Mixture
from jmp_data.mixture.rule import MixingRule
from jmp_data.mixture.subset import Subset

__all__ = ["Member", "MixingRule", "Mixture", "Subset"]
