"""From raw files to finished data sets: plan parts, convert them on any engine, assemble; restartable at any moment."""

from jmp_data.build.engines import choose_engine
from jmp_data.build.plan import plan_build
from jmp_data.build.run import PartDone, SplitDone, run_array_part, run_build, run_finalize
from jmp_data.build.settings import BuildSettings

__all__ = [
    "BuildSettings",
    "PartDone",
    "SplitDone",
    "choose_engine",
    "plan_build",
    "run_array_part",
    "run_build",
    "run_finalize",
]
