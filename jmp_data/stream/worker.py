"""A worker process: turns block numbers into arrays and batches into graphs, one task after another, keeping nothing.

Run as `python -c "from jmp_data.stream.worker import main; main()" DESCRIPTOR`, with the descriptor of a Unix socket.
It ends when the other side of the socket does, so no worker outlives its loader, however that one died.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from jmp_data.errors import JmpDataError
from jmp_data.graphs.memory import edges_in
from jmp_data.stream.shared_arrays import SharedWriter, read_arrays, receive, send

if TYPE_CHECKING:
    from jmp_data.shards.dataset import ShardDataset
    from jmp_data.stream.edges import GraphBuilder
    from jmp_data.stream.state import StreamPosition

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class WorkerSetup:
    """What tasks refer to; sent once to each worker.

    Attributes:
        datasets: the data sets of the mixture.
        columns: which columns to read of each.
        graphs: how to build graphs, or None.
        rank: rank of the loader.
    """

    datasets: list[ShardDataset]
    columns: list[list[str]]
    graphs: GraphBuilder | None
    rank: int


class Task(Protocol):
    """A pure function of its own content, the setup and some arrays."""

    def run(self, setup: WorkerSetup, arrays: dict[str, Array]) -> dict[str, Array]:
        """Do it."""


@dataclass(frozen=True)
class ReadBlock:
    """Read and decompress one block."""

    dataset: int
    block: int

    def __str__(self) -> str:
        return f"reading block {self.block} of data set {self.dataset} of the mixture"

    def run(self, setup: WorkerSetup, arrays: dict[str, Array]) -> dict[str, Array]:
        """`natoms` and the columns of the block."""
        block = setup.datasets[self.dataset].read_block(self.block, setup.columns[self.dataset])
        return {"natoms": block.natoms, **block.columns}


@dataclass(frozen=True)
class ReadStoredGraphs:
    """Read the stored graphs of one block, compressed as they are."""

    dataset: int
    block: int

    def __str__(self) -> str:
        return f"reading the graphs of block {self.block} of data set {self.dataset} of the mixture"

    def run(self, setup: WorkerSetup, arrays: dict[str, Array]) -> dict[str, Array]:
        """What `LayerBlock.from_arrays` takes."""
        layer = setup.datasets[self.dataset].graph_layer
        if layer is None:
            raise JmpDataError(f"data set {self.dataset} of the mixture has no stored graphs")
        return layer.read_block(self.block).arrays()


@dataclass(frozen=True)
class BuildGraphs:
    """Build the graphs of one batch."""

    place: StreamPosition

    def __str__(self) -> str:
        return f"building the graphs of step {self.place.step} of epoch {self.place.epoch}"

    def run(self, setup: WorkerSetup, arrays: dict[str, Array]) -> dict[str, Array]:
        """Edges and cell offsets by their batch keys."""
        if setup.graphs is None:
            raise JmpDataError("worker was set up without graph settings")
        return setup.graphs.build(arrays, self.place, setup.rank)


def serve(connection: socket.socket, setup: WorkerSetup) -> None:
    """Answer tasks until the other side closes."""
    writer = SharedWriter()
    while True:
        (number, task, header, released), descriptor = receive(connection)
        writer.released(released)
        arrays: dict[str, Array] = {}
        if descriptor is not None:
            arrays = read_arrays(header, descriptor)
            os.close(descriptor)
        try:
            with edges_in(writer.claim):
                parcel, memory = writer.write(task.run(setup, arrays))
        except Exception as error:  # noqa: BLE001  whatever it is, the loader raises it where the batch is asked for
            writer.abandon()
            send(connection, (number, None, _portable(error)))
            continue
        send(connection, (number, parcel, None), memory)
        if memory is not None:
            os.close(memory)


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  our own object
    except Exception:  # noqa: BLE001  an exception that does not pickle is still told
        return JmpDataError(f"{type(error).__name__}: {error}")
    return error


def main() -> None:
    """Entry point of the process."""
    # The terminal sends Ctrl-C to every process of the job; the loader decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    try:
        header, descriptor = receive(connection)
        setup_bytes = read_arrays(header, descriptor or 0)["setup"]
        serve(connection, pickle.loads(np.ascontiguousarray(setup_bytes).tobytes()))  # noqa: S301  from our loader
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
