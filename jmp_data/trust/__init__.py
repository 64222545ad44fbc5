"""Whether records that obey the schema can be believed: physical checks on blocks, with reason codes and evidence."""

from jmp_data.trust.checks import check_trust
from jmp_data.trust.force_sign import ForceSignEvidence, compare_force_sign
from jmp_data.trust.thresholds import TrustThresholds

__all__ = ["ForceSignEvidence", "TrustThresholds", "check_trust", "compare_force_sign"]
