"""The compiled part: float32 products made of bfloat16 products, in the tile registers of AMX.

A float32 number has 24 significant bits, a bfloat16 number 8, so x = h + m + l with three of these, exactly. Of the
nine products of parts the six that reach into float32 are taken (hh, hm, mh, hl, lh, mm); what is left out is below
2⁻²¹ of |x·y|. One tile instruction multiplies 16 × 32 by 32 × 16 bfloat16 numbers in 16 cycles and adds in float32:
six of them take less time than the same product in AVX-512.

Layout: a *panel* holds 16 lanes (rows of a, or columns of b) over some k, as three parts, one after the other. A part
is a row of tiles of 16 × 16 words, and a word holds two neighbouring k. Tiles of a have lanes as rows, those of b as
columns.

The four entries at the end run on all threads of a team at once, each of which takes tasks by counting up. All
functions live in one file because Numba's cache notices a change of this file only.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# Numba infers the types.

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, from_dtype, njit, types
from numba.extending import intrinsic

LANES = 16  # of a panel
TILE_K = 32
PARTS = 3
TILE_BYTES = 1024
BLOCK = 2 * LANES  # rows and columns that are multiplied at once: two panels by two
BLOCK_BYTES = 4 * BLOCK * BLOCK

_ORDER = ((2, 0), (1, 0), (1, 1), (0, 1), (0, 2), (0, 0))
"""Parts of a and b that are multiplied: the small ones first, and one side changing at a time."""

JOB = np.dtype(
    [(name, np.int64) for name in ("next_task", "next_scratch", "num_tasks", "task_size", "num_runs", "edge")]
    + [(name, np.int64) for name in ("rows", "columns", "depth")]
    + [(name, np.int64) for name in ("a", "a_row_stride", "a_k_stride", "b", "b_k_stride", "b_column_stride")]
    + [(name, np.int64) for name in ("out", "out_row_stride", "addend", "addend_row_stride")]
    + [(name, np.int64) for name in ("packed", "sums", "scratch", "scratch_bytes", "tile_shapes")]
    + [("gain", np.float32), ("beta", np.float32)]
)
"""out = gain·a·b + beta·addend, without the second term where addend is 0.

a, b, out, addend: addresses of float32 numbers, with strides in numbers. packed: of b in panels. sums: of the results
of runs of k. scratch: of scratch_bytes for each thread. tile_shapes: of what the tile registers are set up with. edge:
rows and columns of the result that a task of `multiply_depth` has.
"""

_NEXT_SCRATCH = JOB.fields["next_scratch"][1]  # type: ignore[index]

# --- instructions ----------------------------------------------------------------------------------------------------

_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_POINTER = _I8.as_pointer()


def _instruct(builder, name, *args):
    """Emit llvm.x86.<name>; Python integers become immediate operands."""
    values = [ir.Constant(_I8, arg) if isinstance(arg, int) else arg for arg in args]
    full_name = f"llvm.x86.{name}"
    function = builder.module.globals.get(full_name) or ir.Function(
        builder.module, ir.FunctionType(ir.VoidType(), [value.type for value in values]), full_name
    )
    builder.call(function, values)


def _offset(builder, address, distance):
    return builder.add(address, ir.Constant(_I64, distance))


def _load_vector(builder, address, kind, count):
    vector = builder.load(builder.inttoptr(address, ir.VectorType(kind, count).as_pointer()))
    vector.align = 4
    return vector


def _store_vector(builder, vector, address):
    builder.store(vector, builder.inttoptr(address, vector.type.as_pointer())).align = 4


@intrinsic
def _set_up_tiles(typingctx, shapes):
    """Load the shapes of all tile registers from 64 bytes at an address."""

    def codegen(context, builder, signature, args):
        _instruct(builder, "ldtilecfg", builder.inttoptr(args[0], _POINTER))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def _release_tiles(typingctx):
    def codegen(context, builder, signature, args):
        _instruct(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _clear_sums(typingctx):
    """Set tiles 0 to 3, which hold the sums of a block, to zero."""

    def codegen(context, builder, signature, args):
        for tile in range(4):
            _instruct(builder, "tilezero", tile)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _store_sums(typingctx, address, row_bytes):
    """Store the sums of a block."""

    def codegen(context, builder, signature, args):
        start, row_bytes = args
        lower = builder.add(start, builder.mul(row_bytes, ir.Constant(_I64, LANES)))
        for tile in range(4):
            place = _offset(builder, lower if tile >= 2 else start, 4 * LANES * (tile % 2))
            _instruct(builder, "tilestored64", tile, builder.inttoptr(place, _POINTER), row_bytes)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def _multiply_tiles(typingctx, a, b, panel, part):
    """Add the products of a tile of two panels of a (in registers 4 and 5) and of b (6 and 7) to the sums.

    Args:
        a, b: addresses of the tile in the first panel and part; panel, part: bytes from one to the next.
    """

    def codegen(context, builder, signature, args):
        *starts, panel, part = args
        held = [-1, -1]
        for wanted in _ORDER:
            for side in range(2):
                if held[side] != wanted[side]:
                    held[side] = wanted[side]
                    first = builder.add(starts[side], builder.mul(part, ir.Constant(_I64, wanted[side])))
                    for which, place in enumerate((first, builder.add(first, panel))):
                        register, pointer = 4 + 2 * side + which, builder.inttoptr(place, _POINTER)
                        _instruct(builder, "tileloadd64", register, pointer, ir.Constant(_I64, 4 * LANES))
            for tile in range(4):
                _instruct(builder, "tdpbf16ps", tile, 4 + tile // 2, 6 + tile % 2)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@intrinsic
def _take(typingctx, counter):
    """Add one to the number at an address, for all threads; the number before."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(_I64, 1), "monotonic")

    return types.int64(types.int64), codegen


@intrinsic
def _pointer(typingctx, address):
    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], _POINTER)

    return types.voidptr(types.int64), codegen


# --- panels ----------------------------------------------------------------------------------------------------------


def _parts(builder, x):
    """Bits of the three parts of a vector of float32 numbers, in the upper halves of words."""
    words = ir.VectorType(_I32, x.type.count)
    upper_half = ir.Constant(words, [0xFFFF0000] * x.type.count)
    for part in range(PARTS):
        bits = builder.and_(builder.bitcast(x, words), upper_half)
        yield bits
        if part < PARTS - 1:
            x = builder.fsub(x, builder.bitcast(bits, x.type))


def _lower_half(builder, bits):
    return builder.lshr(bits, ir.Constant(bits.type, [16] * bits.type.count))


@intrinsic
def _split_along(typingctx, source, to, part):
    """The parts of 32 neighbouring numbers, to 64 bytes at `to`, `to + part` and `to + 2·part`."""

    def codegen(context, builder, signature, args):
        source, to, part = args
        for bits in _parts(builder, _load_vector(builder, source, _F32, TILE_K)):
            narrow = builder.trunc(_lower_half(builder, bits), ir.VectorType(ir.IntType(16), TILE_K))
            _store_vector(builder, narrow, to)
            to = builder.add(to, part)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


@intrinsic
def _split_across(typingctx, first, second, to, part):
    """The same of 16 neighbouring numbers at `first` and 16 at `second`, in turns."""

    def codegen(context, builder, signature, args):
        *sources, to, part = args
        both = [_parts(builder, _load_vector(builder, source, _F32, LANES)) for source in sources]
        for bits, next_bits in zip(*both, strict=True):
            _store_vector(builder, builder.or_(_lower_half(builder, bits), next_bits), to)
            to = builder.add(to, part)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@intrinsic
def _transpose(typingctx, tile):
    """Transpose the 16 × 16 words at an address."""

    def codegen(context, builder, signature, args):
        places = [_offset(builder, args[0], 4 * LANES * row) for row in range(LANES)]
        rows = [_load_vector(builder, place, _I32, LANES) for place in places]
        for width in (8, 4, 2, 1):
            # In every square of 2·width words, the two off-diagonal squares of width change places.
            upper = [j if j & width == 0 else j - width + LANES for j in range(LANES)]
            lower = [j + width if j & width == 0 else j + LANES for j in range(LANES)]
            for i in (row for row in range(LANES) if row & width == 0):
                pair = rows[i], rows[i + width]
                for row, mask in ((i, upper), (i + width, lower)):
                    rows[row] = builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(_I32, LANES), mask))
        for row, place in zip(rows, places, strict=True):
            _store_vector(builder, row, place)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@njit(inline="always")
def _panel_bytes(depth):
    return PARTS * TILE_BYTES * -(-depth // TILE_K)


@njit(nogil=True, error_model="numpy")
def _pack(source, lane_stride, k_stride, lanes, depth, panel, lanes_are_rows, padded):
    """One panel of `lanes` lanes and `depth` k, of which one is next to each other in memory; the rest is zero."""
    part = _panel_bytes(depth) // PARTS
    for tile in range(part // TILE_BYTES):
        start = source + 4 * TILE_K * tile * k_stride
        filled = min(TILE_K, depth - TILE_K * tile)
        lane_bytes, k_bytes = 4 * lane_stride, 4 * k_stride
        if lanes < LANES or filled < TILE_K:
            _pad(start, lane_stride, k_stride, lanes, filled, padded)
            start = padded.ctypes.data
            lane_bytes, k_bytes = (4 * TILE_K, 4) if k_stride == 1 else (4, 4 * LANES)
        to = panel + TILE_BYTES * tile
        if k_stride == 1:
            for lane in range(LANES):
                _split_along(start + lane * lane_bytes, to + 4 * LANES * lane, part)
        else:
            for word in range(TILE_K // 2):
                first = start + 2 * word * k_bytes
                _split_across(first, first + k_bytes, to + 4 * LANES * word, part)
        if lanes_are_rows != (k_stride == 1):
            for number in range(PARTS):
                _transpose(to + number * part)


@njit(nogil=True, error_model="numpy")
def _pad(source, lane_stride, k_stride, lanes, depth, padded):
    """Copy what does not fill a tile to the start of one of zeros, in its order."""
    padded[:] = 0
    if lanes <= 0:
        return
    x = carray(_pointer(source), ((lanes - 1) * lane_stride + (depth - 1) * k_stride + 1,), np.float32)
    for lane in range(lanes):
        for k in range(depth):
            place = lane * TILE_K + k if k_stride == 1 else k * LANES + lane
            padded[place] = x[lane * lane_stride + k * k_stride]


@njit(nogil=True, error_model="numpy")
def _pack_a(job, first_row, stop_row, start, depth, to, padded):
    """Whole blocks of panels of a from `first_row` on, `depth` k from `start` on."""
    for row in range(first_row, first_row + BLOCK * -(-(stop_row - first_row) // BLOCK), LANES):
        source = job.a + 4 * (row * job.a_row_stride + start * job.a_k_stride)
        _pack(source, job.a_row_stride, job.a_k_stride, min(LANES, stop_row - row), depth, to, True, padded)
        to += _panel_bytes(depth)


@njit(nogil=True, error_model="numpy")
def _pack_b(job, first_column, stop_column, start, depth, to, padded):
    """The same of b."""
    for column in range(first_column, first_column + BLOCK * -(-(stop_column - first_column) // BLOCK), LANES):
        source = job.b + 4 * (column * job.b_column_stride + start * job.b_k_stride)
        lanes = min(LANES, stop_column - column)
        _pack(source, job.b_column_stride, job.b_k_stride, lanes, depth, to, False, padded)
        to += _panel_bytes(depth)


# --- results ---------------------------------------------------------------------------------------------------------


@intrinsic
def _add_row(typingctx, x, to):
    """Add a row of a block to another."""

    def codegen(context, builder, signature, args):
        x, to = (_load_vector(builder, address, _F32, BLOCK) for address in args)
        _store_vector(builder, builder.fadd(x, to), args[1])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def _finish_row(typingctx, x, to, gain, addend, beta):
    """gain·x, plus beta·addend where its address is not 0, of a row of a block."""

    def codegen(context, builder, signature, args):
        x, to, gain, addend, beta = args
        row = ir.VectorType(_F32, BLOCK)

        def scaled(address, factor):
            first = builder.insert_element(ir.Constant(row, ir.Undefined), factor, ir.Constant(_I32, 0))
            same = builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_I32, BLOCK), [0] * BLOCK))
            return builder.fmul(_load_vector(builder, address, _F32, BLOCK), same)

        total = scaled(x, gain)
        with builder.if_else(builder.icmp_signed("==", addend, ir.Constant(_I64, 0))) as (alone, with_addend):
            with alone:
                _store_vector(builder, total, to)
            with with_addend:
                _store_vector(builder, builder.fadd(total, scaled(addend, beta)), to)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32, types.int64, types.float32), codegen


@njit(nogil=True, error_model="numpy")
def _finish(job, block, block_row_bytes, row, column, stop_row, first, stop):
    """Write rows first to stop of a block of sums, which starts at (row, column), as far as the result reaches."""
    columns = min(BLOCK, job.columns - column)
    for i in range(first, min(stop, stop_row - row)):
        x = block + i * block_row_bytes
        to = job.out + 4 * ((row + i) * job.out_row_stride + column)
        addend = job.addend
        if addend != 0:
            addend += 4 * ((row + i) * job.addend_row_stride + column)
        if columns == BLOCK:
            _finish_row(x, to, job.gain, addend, job.beta)
            continue
        numbers = carray(_pointer(x), (columns,), np.float32)
        result = carray(_pointer(to), (columns,), np.float32)
        if addend == 0:
            for j in range(columns):
                result[j] = job.gain * numbers[j]
        else:
            added = carray(_pointer(addend), (columns,), np.float32)
            for j in range(columns):
                result[j] = job.gain * numbers[j] + job.beta * added[j]


# --- blocks ----------------------------------------------------------------------------------------------------------


@njit(nogil=True, error_model="numpy")
def _multiply_block(job, a, b, depth, last_block, last_row, last_column, stop_row):
    """Add the products of two panels of a by two of b to the sums, and write the block before to the result meanwhile.

    Vector instructions between those for tiles cost next to nothing. Nothing is written where last_row is stop_row.
    """
    panel = _panel_bytes(depth)
    part = panel // PARTS
    rows_at_once = -(-BLOCK // max(1, part // TILE_BYTES))
    done = 0
    for place in range(0, part, TILE_BYTES):
        _multiply_tiles(a + place, b + place, panel, part)
        stop = min(done + rows_at_once, BLOCK)
        _finish(job, last_block, 4 * BLOCK, last_row, last_column, stop_row, done, stop)
        done = stop


# --- tasks -----------------------------------------------------------------------------------------------------------


@njit(nogil=True, error_model="numpy")
def _pack_columns(jobs):
    job, padded = jobs[0], np.empty(LANES * TILE_K, np.float32)
    task = _take(jobs.ctypes.data)
    while task < job.num_tasks:
        first = task * BLOCK
        to = job.packed + first // LANES * _panel_bytes(job.depth)
        _pack_b(job, first, min(first + BLOCK, job.columns), 0, job.depth, to, padded)
        task = _take(jobs.ctypes.data)


@njit(nogil=True, error_model="numpy")
def _multiply_rows(jobs):
    job, padded = jobs[0], np.empty(LANES * TILE_K, np.float32)
    block = job.scratch + job.scratch_bytes * _take(jobs.ctypes.data + _NEXT_SCRATCH)
    last_block, panels = block + BLOCK_BYTES, block + 2 * BLOCK_BYTES
    panel_bytes = _panel_bytes(job.depth)
    _set_up_tiles(job.tile_shapes)
    task = _take(jobs.ctypes.data)
    while task < job.num_tasks:
        first = task * job.task_size
        stop = min(first + job.task_size, job.rows)
        _pack_a(job, first, stop, 0, job.depth, panels, padded)
        last_row, last_column = stop, 0
        for column in range(0, job.columns, BLOCK):
            b = job.packed + column // LANES * panel_bytes
            for row in range(first, stop, BLOCK):
                a = panels + (row - first) // LANES * panel_bytes
                _clear_sums()
                _multiply_block(job, a, b, job.depth, last_block, last_row, last_column, stop)
                _store_sums(block, 4 * BLOCK)
                block, last_block = last_block, block
                last_row, last_column = row, column
        _finish(job, last_block, 4 * BLOCK, last_row, last_column, stop, 0, BLOCK)
        task = _take(jobs.ctypes.data)
    _release_tiles()


@njit(inline="always")
def _place(job, task):
    """First row, first column and first k of a task of `multiply_depth`, and the k that it stops before."""
    pieces = -(-job.columns // job.edge)
    piece, run = task // job.num_runs, task % job.num_runs
    length = TILE_K * -(-job.depth // (TILE_K * job.num_runs))
    start = min(run * length, job.depth)
    return piece // pieces * job.edge, piece % pieces * job.edge, start, min(start + length, job.depth)


@njit(nogil=True, error_model="numpy")
def _multiply_depth(jobs):
    job, padded = jobs[0], np.empty(LANES * TILE_K, np.float32)
    block = job.scratch + job.scratch_bytes * _take(jobs.ctypes.data + _NEXT_SCRATCH)
    a = block + BLOCK_BYTES
    row_bytes = 4 * job.edge
    _set_up_tiles(job.tile_shapes)
    task = _take(jobs.ctypes.data)
    while task < job.num_tasks:
        first_row, first_column, start, stop = _place(job, task)
        stop_row, stop_column = min(first_row + job.edge, job.rows), min(first_column + job.edge, job.columns)
        sums = job.sums + task * row_bytes * job.edge
        for k in range(start, max(stop, start + 1), job.task_size):
            depth = min(job.task_size, stop - k)
            panel_bytes = _panel_bytes(depth)
            b = a + job.edge // LANES * panel_bytes
            _pack_a(job, first_row, stop_row, k, depth, a, padded)
            _pack_b(job, first_column, stop_column, k, depth, b, padded)
            for column in range(0, stop_column - first_column, BLOCK):
                for row in range(0, stop_row - first_row, BLOCK):
                    place = sums + row * row_bytes + 4 * column
                    _clear_sums()
                    a_panels, b_panels = a + row // LANES * panel_bytes, b + column // LANES * panel_bytes
                    _multiply_block(job, a_panels, b_panels, depth, block, 0, 0, 0)
                    if k == start:
                        _store_sums(place, row_bytes)
                        continue
                    _store_sums(block, 4 * BLOCK)
                    for i in range(BLOCK):
                        _add_row(block + 4 * BLOCK * i, place + row_bytes * i)
        task = _take(jobs.ctypes.data)
    _release_tiles()


@njit(nogil=True, error_model="numpy")
def _add_runs(jobs):
    job = jobs[0]
    row_bytes = 4 * job.edge
    task = _take(jobs.ctypes.data)
    while task < job.num_tasks:
        row = task * BLOCK
        for column in range(0, job.columns, BLOCK):
            piece = row // job.edge * -(-job.columns // job.edge) + column // job.edge
            sums = job.sums + piece * job.num_runs * row_bytes * job.edge
            sums += row % job.edge * row_bytes + 4 * (column % job.edge)
            for run in range(1, job.num_runs):
                for i in range(BLOCK):
                    _add_row(sums + (run * job.edge + i) * row_bytes, sums + i * row_bytes)
            _finish(job, sums, row_bytes, row, column, job.rows, 0, BLOCK)
        task = _take(jobs.ctypes.data)


_TEAM = types.void(types.CPointer(from_dtype(JOB)))


@cfunc(_TEAM, cache=True)
def pack_columns(job):
    """Tasks: a block of columns of b each, to panels."""
    _pack_columns(carray(job, 1))


@cfunc(_TEAM, cache=True)
def multiply_rows(job):
    """Tasks: task_size rows of the result each, from packed columns."""
    _multiply_rows(carray(job, 1))


@cfunc(_TEAM, cache=True)
def multiply_depth(job):
    """Tasks: edge × edge of the result each, over one of num_runs runs of k; task_size k are packed at once."""
    _multiply_depth(carray(job, 1))


@cfunc(_TEAM, cache=True)
def add_runs(job):
    """Tasks: a block of rows of the result each, from the sums of all runs."""
    _add_runs(carray(job, 1))
