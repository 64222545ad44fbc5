"""Demo data: miniatures of the published archives in their true layout, labelled by real physics.

The writers take plain arrays and know no physics; tests of the readers use them to make tiny archives of their own.
"""

from __future__ import annotations

from jmp_data.demo.frames import LabelledFrame
from jmp_data.demo.generate import ArchiveSummary, DemoSummary, write_demo_raw
from jmp_data.demo.write_ani1x import FormulaGroup, write_ani1x
from jmp_data.demo.write_oc20 import format_extxyz, write_oc20_split
from jmp_data.demo.write_oc22 import PygGeneration, pickle_record, write_lmdb, write_oc22_split
from jmp_data.demo.write_rmd17 import MoleculeTrajectory, write_rmd17_molecule, write_rmd17_splits
from jmp_data.demo.write_transition1x import Reaction, write_transition1x

__all__ = [
    "ArchiveSummary",
    "DemoSummary",
    "FormulaGroup",
    "LabelledFrame",
    "MoleculeTrajectory",
    "PygGeneration",
    "Reaction",
    "format_extxyz",
    "pickle_record",
    "write_ani1x",
    "write_demo_raw",
    "write_lmdb",
    "write_oc20_split",
    "write_oc22_split",
    "write_rmd17_molecule",
    "write_rmd17_splits",
    "write_transition1x",
]
