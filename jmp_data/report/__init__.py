"""What data sets hold, on one page: counts, elements, sizes, energies, forces, pictures, provenance."""

from jmp_data.report.html import render_report, write_report
from jmp_data.report.statistics import SplitStatistics, collect_statistics

__all__ = ["SplitStatistics", "collect_statistics", "render_report", "write_report"]
