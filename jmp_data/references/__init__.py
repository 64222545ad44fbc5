"""Relative to what: per-element energy references and normalisers, from sums that stream and merge."""

from jmp_data.references.accumulate import StatisticsAccumulator
from jmp_data.references.fit import fit_references

__all__ = ["StatisticsAccumulator", "fit_references"]
