"""`StreamLoader`: one epoch of ready `torch_geometric` batches at a time, for any number of ranks and workers.

The parts, in the order in which a batch passes them:

    EpochOrder     position → structure                        epoch_order.py, dataset_order.py
    Steps          where global batches end, who gets what     steps.py, balance.py
    BlocksAhead    blocks in memory when they are needed       reading.py
    gather         rows of blocks → columns in stream order    gather.py
    collate        columns → batches, as views                 collate.py
    StoredGraphs   stored edges, if they fit what is asked     stored_graphs.py
    GraphBuilder   edges, if asked for                         edges.py

Only the first two decide what is in a batch, and they know nothing of workers, prefetching or time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from jmp_data.errors import ManifestError
from jmp_data.graphs import GRAPH_NAMES
from jmp_data.mixture import Mixture
from jmp_data.stream.balance import CostModel
from jmp_data.stream.collate import collate
from jmp_data.stream.columns import batch_columns
from jmp_data.stream.edges import GraphBuilder, GraphChoice, GraphPlace, attach, geometry_of
from jmp_data.stream.epoch_order import ORDER_VERSION, WINDOW_BLOCKS, EpochOrder
from jmp_data.stream.gather import gather
from jmp_data.stream.limits import MAX_NEIGHBORS, BatchLimits
from jmp_data.stream.pool import WorkerPool
from jmp_data.stream.reading import (
    BlockFetcher,
    BlocksAhead,
    GraphPoolFetcher,
    GraphThreadFetcher,
    PoolFetcher,
    ThreadFetcher,
    columns_of_datasets,
    is_remote,
)
from jmp_data.stream.state import StreamPosition, pack_state, unpack_state
from jmp_data.stream.steps import Steps
from jmp_data.stream.stored_graphs import StoredGraphs
from jmp_data.stream.worker import BuildGraphs, WorkerSetup

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from jmp_data.schema import Block
    from jmp_data.shards.dataset import ShardDataset
    from jmp_data.shards.graph_layer import LayerBlock

Array = npt.NDArray[Any]
Delivery: TypeAlias = "tuple[Batch, StreamPosition, Mapping[str, Array]]"
"""A batch, the place that the stream reaches with it, and the stored edges from which its graphs are to be made."""

SECTION_SAMPLES = 16384
"""Samples, over all ranks, that are gathered at a time; their arrays live as long as any batch made of them."""

BATCHES_PER_WORKER = 2
"""Batches whose graphs are being built ahead of the one that is wanted."""


class StreamLoader:
    """Batches of a mixture, or of one data set, in an order that can be stopped and resumed anywhere.

    Iterating gives one epoch and moves on to the next; `set_epoch` chooses one. Breaking out and iterating again
    starts the epoch anew; to go on where it stopped, load the `state_dict` that was taken there.

    A batch has pos (N, 3) float32 Å, atomic_numbers (N,) int64, cell (B, 3, 3) float32 Å, pbc (B, 3) bool, natoms (B,)
    int64, tags (N,) int64, fixed (N,) bool, every target by name (energy (B,) float64 eV, forces (N, 3) float32 eV/Å;
    NaN, or 0 for integers, where a data set has none), batch (N,), ptr (B + 1,), dataset_index (B,) and
    structure_index (B,) int64: which data set of the mixture and which structure of it.

    Args:
        mixture: a mixture, an open data set, or the path of one.
        batch_size: structures per rank and step, 32 by default; the global batch is batch_size × world_size. With
            `max_atoms` or `max_edges` it is one more limit, and there is none by default.
        seed: what the order depends on, besides the mixture.
        rank: which part of each global batch this loader delivers, 0 to world_size - 1.
        world_size: how many ranks share each global batch.
        num_workers: processes that read blocks and build graphs; 0 does both in this process. Blocks behind a URL are
            read by threads of this process in any case.
        max_atoms: atoms that one rank may get in one step; see `jmp_data.stream.budget`.
        max_edges: edges that one rank may get in one step, counted as atoms × the neighbours that the main graph may
            keep, which is an upper bound.
        shuffle: False for stored order, each structure once, data set after data set (validation).
        targets: only these targets; all by default.
        graphs: put the four graphs on each batch: settings for all data sets, or name → settings, or "auto" for 12 Å
            where anything is periodic and 8 Å elsewhere. See `jmp_data.graphs.attach_graphs`. Without dropout, graphs
            that a data set stores for exactly these settings are read, all others are searched; the edges are the same.
        graph_names: only these graphs, of main, a2a, a2ee2a and qint.
        graphs_on: "workers" builds graphs here or in the worker processes. "device" leaves them to `attach_graphs`,
            which builds them where the batch is by then, a GPU for instance; such batches come with `edge_seeds` (B,)
            int64. The edges are the same.
        edge_dropout: probability of dropping an edge of those graphs, in training.
        cost: (n,) atom counts → (n,) work, by which ranks are balanced; the atom count itself by default.
        window_blocks: blocks of each data set that are shuffled together.
        prefetch_blocks: blocks read ahead of those; `window_blocks` by default.

    Raises:
        ManifestError: settings that cannot work together, or an epoch with fewer structures than ranks.
    """

    def __init__(
        self,
        mixture: Mixture | ShardDataset | str | Path,
        batch_size: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        *,
        max_atoms: int | None = None,
        max_edges: int | None = None,
        shuffle: bool = True,
        targets: Sequence[str] | None = None,
        graphs: GraphChoice | None = None,
        graph_names: Sequence[str] = GRAPH_NAMES,
        graphs_on: GraphPlace = "workers",
        edge_dropout: float = 0.0,
        cost: CostModel | None = None,
        window_blocks: int = WINDOW_BLOCKS,
        prefetch_blocks: int | None = None,
    ) -> None:
        self.mixture = mixture if isinstance(mixture, Mixture) else Mixture.single(mixture)
        self.limits = BatchLimits(batch_size, max_atoms, max_edges, world_size)
        self.seed, self.rank, self.world_size, self.shuffle = seed, rank, world_size, shuffle
        if not 0 <= rank < world_size:
            raise ManifestError(f"rank {rank} must lie between 0 and world_size - 1 = {world_size - 1}")
        if num_workers < 0:
            raise ManifestError(f"num_workers is {num_workers}; 0 loads in this process")
        if window_blocks < 1 or (prefetch_blocks or 0) < 0:
            raise ManifestError(
                f"window_blocks {window_blocks} must be 1 or more, prefetch_blocks {prefetch_blocks} 0 or more"
            )
        if graphs_on not in get_args(GraphPlace):
            raise ManifestError(f"graphs_on is {graphs_on!r}; choose from {', '.join(get_args(GraphPlace))}")
        self._columns = batch_columns(self.mixture, targets)
        self._graphs = self._stored = None
        if graphs is not None:
            self._graphs = GraphBuilder.for_mixture(self.mixture, graphs, edge_dropout, seed, graph_names)
            if graphs_on == "workers":
                self._stored = StoredGraphs.for_mixture(self.mixture, self._graphs)
        self._graphs_on = graphs_on
        self._cost, self._window_blocks = cost, window_blocks
        self._prefetch_blocks = window_blocks if prefetch_blocks is None else prefetch_blocks
        self._place = StreamPosition()
        self._resume = self._place
        self._plan: tuple[EpochOrder, Steps] | None = None
        self.num_workers = num_workers
        self._pool: WorkerPool | None = None
        self._epoch_plan(0)

    @property
    def epoch(self) -> int:
        """The epoch that is being, or will next be, iterated."""
        return self._place.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the next epoch; naming the current one keeps a loaded state."""
        if epoch != self.epoch:
            self._place = self._resume = StreamPosition(epoch)

    def __len__(self) -> int:
        """Steps of the current epoch, the same on every rank.

        With `max_atoms` or `max_edges` this plans the whole epoch, about a microsecond a structure.
        """
        return self._epoch_plan(self.epoch)[1].num_steps

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the batches that were delivered so far; JSON-able, a few hundred bytes."""
        return pack_state(self._place, self._identity)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state at the next iteration. Ranks and workers may have changed, the global batch may not.

        Raises:
            StateMismatchError: the state belongs to another mixture, seed, batch size or format.
        """
        place = unpack_state(state, self._identity)
        order, steps = self._epoch_plan(place.epoch)
        if place.position < order.size:
            steps.stops(place.step, place.position, 1)
        self._place = self._resume = place

    @property
    def _identity(self) -> dict[str, Any]:
        """What the sequence of global batches depends on."""
        return {
            "order_version": ORDER_VERSION,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "window_blocks": self._window_blocks,
            **self.limits.of_all_ranks,
            **({} if self.limits.max_edges is None else {"edges_per_atom": self._neighbors}),
            "datasets": {
                m.name: [_short(m.dataset.fingerprint, m.selection.fingerprint), m.samples if self.shuffle else m.size]
                for m in self.mixture
            },
        }

    @property
    def _neighbors(self) -> int:
        return MAX_NEIGHBORS if self._graphs is None else self._graphs.main_neighbors

    def _epoch_plan(self, epoch: int) -> tuple[EpochOrder, Steps]:
        """The order of an epoch and its cuts; the last one asked for is kept."""
        if self._plan is None or self._plan[0].epoch != epoch:
            order = EpochOrder(
                self.mixture, seed=self.seed, epoch=epoch, window_blocks=self._window_blocks, shuffle=self.shuffle
            )
            self._plan = order, self.limits.cut(order, cost=self._cost, neighbors=self._neighbors)
        return self._plan

    def __iter__(self) -> Iterator[Batch]:
        place, self._resume = self._resume, StreamPosition(self.epoch)
        self._place = place
        order, steps = self._epoch_plan(place.epoch)
        batches = self._batches(order, steps, place)
        if self._graphs is not None and self._graphs_on == "workers":
            batches = self._with_graphs(batches, self._graphs)
        for batch, reached, _ in batches:
            self._place = reached
            if self._graphs is not None and self._graphs_on == "device":
                self._graphs.add_seeds(batch, reached, self.rank)
            yield batch
        self._place = self._resume = StreamPosition(place.epoch + 1)

    def attach_graphs(self, batch: Batch) -> Batch:
        """The batch with its graphs; with `graphs_on="device"` they are built now, on the device of the batch.

        Args:
            batch: from this loader, or structures of one with their `edge_seeds`, on any device.
        """
        if self._graphs is None or self._graphs_on == "workers":
            return batch
        return self._graphs.attach_on_device(batch)

    def _batches(self, order: EpochOrder, steps: Steps, place: StreamPosition) -> Iterator[Delivery]:
        """Batches of this rank, with the place reached with each and what is stored of its graphs."""
        with closing(self._blocks_ahead(order, place)) as blocks, self._graphs_ahead(order, place) as graphs:
            step, position = place.step, place.position
            while position < order.size:
                stops = steps.stops(step, position, SECTION_SAMPLES)
                last = int(stops[-1])
                for ahead in (blocks, graphs):
                    if ahead is not None:
                        ahead.move_to(order.chapter_of(last - 1), order.consumed(order.chapter_of(position)))
                samples = order.samples(position, last)
                bounds = np.concatenate([[position], stops]) - position
                mine = np.flatnonzero(steps.assign(samples, bounds) == self.rank)
                counts = np.diff(np.searchsorted(mine, bounds))
                mine_only = samples.take(mine)
                gathered = gather(mine_only, self._columns, blocks.block)
                stored: Iterator[Mapping[str, Array]] = repeat({}, len(stops))
                if graphs is not None and self._stored is not None:
                    periodic: Array = np.any(gathered.columns["pbc"], axis=1)
                    stored = self._stored.of_batches(mine_only, counts, periodic, graphs.block)
                for batch, stop, edges in zip(collate(gathered, counts), stops.tolist(), stored, strict=True):
                    step += 1
                    yield batch, StreamPosition(place.epoch, step, stop), edges
                position = last

    def _reading_pool(self) -> WorkerPool | None:
        """Who reads: the workers, or None for threads, of which many more can wait for a far server."""
        return None if is_remote(self.mixture) else self._worker_pool()

    def _blocks_ahead(self, order: EpochOrder, place: StreamPosition) -> BlocksAhead[Block]:
        pool = self._reading_pool()
        fetcher: BlockFetcher[Block] = (
            ThreadFetcher(self.mixture, self._columns) if pool is None else PoolFetcher(self.mixture, pool)
        )
        return BlocksAhead(order, place.position, fetcher, self._prefetch_blocks)

    @contextmanager
    def _graphs_ahead(
        self, order: EpochOrder, place: StreamPosition
    ) -> Iterator[BlocksAhead[LayerBlock | None] | None]:
        if self._stored is None:
            yield None
            return
        pool, served = self._reading_pool(), self._stored.datasets.tolist()
        fetcher: BlockFetcher[LayerBlock | None] = (
            GraphThreadFetcher(self.mixture, served) if pool is None else GraphPoolFetcher(served, pool)
        )
        with closing(BlocksAhead(order, place.position, fetcher, self._prefetch_blocks)) as ahead:
            yield ahead

    def _with_graphs(self, batches: Iterator[Delivery], builder: GraphBuilder) -> Iterator[Delivery]:
        """Batches with their graphs, in the same order; with workers, some batches are under way at a time."""
        pool = self._worker_pool()
        if pool is None:
            for batch, place, stored in batches:
                edges = builder.build({**geometry_of(batch), **stored}, place, self.rank)
                yield attach(batch, edges), place, {}
            return
        under_way: deque[tuple[Batch, StreamPosition, int]] = deque()
        try:
            for batch, place, stored in batches:
                arrays = {**geometry_of(batch), **stored}
                under_way.append((batch, place, pool.submit(BuildGraphs(place), arrays, urgent=True)))
                if len(under_way) > self.num_workers * BATCHES_PER_WORKER:
                    batch, place, number = under_way.popleft()
                    yield attach(batch, pool.result(number)), place, {}
            while under_way:
                batch, place, number = under_way.popleft()
                yield attach(batch, pool.result(number)), place, {}
        finally:
            for _, _, number in under_way:
                pool.discard(number)

    def _worker_pool(self) -> WorkerPool | None:
        """The worker processes, started on first use and kept for the next epochs."""
        if self.num_workers and self._pool is None:
            datasets = [member.dataset for member in self.mixture]
            columns = columns_of_datasets(self.mixture, self._columns)
            self._pool = WorkerPool(self.num_workers, WorkerSetup(datasets, columns, self._graphs, self.rank))
        return self._pool

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that are running now."""
        return [] if self._pool is None else self._pool.pids

    def close(self) -> None:
        """End the worker processes; they also end with the loader, and start again when it is iterated."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None, "_plan": None}


def _short(fingerprint: str, selection: str) -> str:
    return fingerprint[:12] if selection == "all" else f"{fingerprint[:12]}+{selection[:8]}"
