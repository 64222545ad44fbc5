"""How far a window of shuffled blocks is from a perfect shuffle, from indexes alone.

    python benchmarks/shuffle_quality.py [--structures 2000000] [--json]

Two questions, each against an ideal shuffle of the same structures:

* How many pairs of frames of one trajectory meet in a batch? Structures are stored as published: frames of a trajectory
  one after the other; or, "shuffled", in the order that `jmp-data build --shuffle` gives them.
* How far is the composition of a batch from the mixture?

"""

from __future__ import annotations

import argparse
import itertools
import json
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.mixture import Mixture
from jmp_data.mixture.permutation import permutation
from jmp_data.stream.epoch_order import WINDOW_BLOCKS, EpochOrder

BATCH = 32
WINDOWS = (1, 4, 8, 16, 32, 64, 128)
# Name, structures per block, frames of a trajectory that follow one another: relaxations, reaction paths, conformers.
KINDS = (("oc20", 450, 100), ("transition1x", 2048, 300), ("ani1x", 2048, 1600))


class Index:
    """What planning needs of a data set: its blocks and atom counts."""

    def __init__(self, name: str, block: int, size: int) -> None:
        self.name = self.fingerprint = name
        self.num_blocks = -(-size // block)
        self.block_ptr = np.minimum(np.arange(self.num_blocks + 1) * block, size)
        self.natoms = np.broadcast_to(np.int32(50), size)

    def __len__(self) -> int:
        return len(self.natoms)


def meetings(groups: npt.NDArray[np.int64], batch: int) -> float:
    """Pairs of the same group in one batch, per batch."""
    steps = len(groups) // batch
    table = np.sort(groups[: steps * batch].reshape(steps, batch), axis=1)
    pairs, run = 0, np.zeros(steps, np.int64)
    for column in range(1, batch):
        run = np.where(table[:, column] == table[:, column - 1], run + 1, 0)
        pairs += int(run.sum())
    return pairs / steps


def ideal_meetings(size: int, trajectory: int, batch: int) -> float:
    """Expected pairs under an ideal shuffle of `size` structures in trajectories of equal length."""
    return batch * (batch - 1) / 2 * (trajectory - 1) / (size - 1)


def one_dataset(size: int) -> list[dict[str, Any]]:
    rows = []
    # What `build --shuffle` does: which structure of the raw files is stored where.
    stored = permutation(size, 1)
    for (name, block, trajectory), shuffled in itertools.product(KINDS, (False, True)):
        mixture = Mixture.from_datasets({name: Index(name, block, size)}, temperature=1.0)
        ideal = ideal_meetings(size, trajectory, BATCH)
        for window in (1, WINDOW_BLOCKS) if shuffled else WINDOWS:
            order = EpochOrder(mixture, seed=0, epoch=0, window_blocks=window)
            index = order.samples(0, min(size, 400_000)).index
            found = meetings((stored[index] if shuffled else index) // trajectory, BATCH)
            rows.append(
                {
                    "data": f"{name}, trajectories of {trajectory}",
                    "stored": "shuffled" if shuffled else "as published",
                    "window_blocks": window,
                    "pairs_per_batch": found,
                    "ideal": ideal,
                    "trajectories_in_window": window * block / trajectory,
                    "met_by_a_structure": 2 * found / BATCH,
                }
            )
    return rows


def composition(size: int) -> list[dict[str, Any]]:
    """Standard deviation of the count of each data set in a batch, against the binomial one of an ideal shuffle."""
    shares = zip(KINDS, (1, 10, 50), strict=True)
    sets = {name: Index(name, block, size // share) for (name, block, _), share in shares}
    mixture = Mixture.from_datasets(sets, temperature=2.0)
    order = EpochOrder(mixture, seed=0, epoch=0, window_blocks=WINDOW_BLOCKS)
    dataset = order.samples(0, min(order.size, 400_000) // BATCH * BATCH).dataset.reshape(-1, BATCH)
    rows = []
    for number, member in enumerate(mixture):
        count, p = (dataset == number).sum(axis=1), member.probability
        rows.append(
            {
                "data": member.name,
                "expected_in_batch": BATCH * p,
                "deviation": float(np.sqrt(np.mean((count - BATCH * p) ** 2))),
                "ideal_deviation": float(np.sqrt(BATCH * p * (1 - p))),
                "fewest": int(count.min()),
                "most": int(count.max()),
            }
        )
    return rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    print("  ".join(f"{key:>24}" for key in rows[0]))
    for row in rows:
        print("  ".join(f"{value:>24.4g}" if isinstance(value, float) else f"{value!s:>24}" for value in row.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=int, default=2_000_000, help="of each data set")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = {"meetings": one_dataset(arguments.structures), "composition": composition(arguments.structures)}
    if arguments.json:
        print(json.dumps(results, indent=1))
        return
    for rows in results.values():
        print_rows(rows)
        print()


if __name__ == "__main__":
    main()
