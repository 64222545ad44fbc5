"""Run by torchrun: `launched_run.py CONFIG [resume]`."""

from __future__ import annotations

import sys
from pathlib import Path

from jmp_model.train.config import PretrainConfig, parse_settings, read_recipe
from jmp_model.train.trainer import pretrain

if __name__ == "__main__":
    config = parse_settings(PretrainConfig, read_recipe(Path(sys.argv[1])), where=sys.argv[1])
    pretrain(config, resume="resume" in sys.argv[2:])
