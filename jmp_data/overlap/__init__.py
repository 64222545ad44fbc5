"""Which structures do two data sets share? Exact and near duplicates, found by fingerprint, verified by RMSD."""

from jmp_data.overlap.exclusions import check_exclusions
from jmp_data.overlap.output import read_summary, summarize, write_overlap
from jmp_data.overlap.run import Overlap, PairResult, find_overlap
from jmp_data.overlap.settings import OverlapSettings
from jmp_data.overlap.sides import open_sides
from jmp_data.overlap.slabs import count_reads
from jmp_data.overlap.verify_match import verified_rmsd

__all__ = [
    "Overlap",
    "OverlapSettings",
    "PairResult",
    "check_exclusions",
    "count_reads",
    "find_overlap",
    "open_sides",
    "read_summary",
    "summarize",
    "verified_rmsd",
    "write_overlap",
]
