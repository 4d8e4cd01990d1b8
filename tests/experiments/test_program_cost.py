"""Operations, bytes and collectives of compiled programs, beside counts by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from experiments.planning.hardware import HARDWARE, Chip
from experiments.planning.hlo_text import Shape, parse
from experiments.planning.program_cost import Piece, Work, count
from experiments.planning.roofline import estimate
from pref_jax.errors import UserError
from pref_jax.mesh import make_mesh


def _counted(function, *shapes, **options):
    """What a program of arrays of these shapes does."""
    given = [shape if isinstance(shape, jax.ShapeDtypeStruct) else _array(*shape) for shape in shapes]
    return count(parse(jax.jit(function, **options).lower(*given).compile().as_text()))


def _array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("seed", range(4))
def test_products_count_as_often_as_they_run(seed):
    rng = np.random.default_rng(seed)
    inner, outer, rows, size = (int(n) for n in rng.integers(2, 9, 4))

    def layer(x, w):
        return jnp.tanh(x @ w), None

    def model(x, ws):
        def again(x, _):
            return jax.lax.scan(layer, x, ws)[0], None

        return jax.lax.scan(again, x, None, length=outer)[0]

    found = _counted(model, (rows, size), (inner, size, size))
    assert found.operations == inner * outer * 2 * rows * size**2
    assert found.unknown_loops == []


@pytest.mark.parametrize("remat", [False, True])
def test_a_backward_pass_counts_what_it_computes_again(remat):
    layers, rows, size = 5, 16, 32

    def block(x, w):
        return jnp.sin(jnp.sin(x @ w) @ w), None

    def loss(x, ws):
        body = jax.checkpoint(block) if remat else block
        return jnp.sum(jax.lax.scan(body, x, ws)[0])

    one = 2 * rows * size**2 * layers
    found = _counted(jax.grad(loss, argnums=1), (rows, size), (layers, size, size))
    # Two products forward; backward two by inputs and two by weights; again the first, or both.
    assert found.operations in ([8 * one, 7 * one] if remat else [6 * one])


def test_batched_products_and_convolutions_are_counted():
    assert _counted(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (3, 4, 5), (3, 5, 6)).operations == 2 * 3 * 4 * 5 * 6

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (2,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))

    found = _counted(convolve, (2, 9, 3), (3, 3, 4)).operations
    # Five outputs of three taps each, of which the first and the last one meets padding.
    assert found == 2 * 2 * 4 * 3 * (5 * 3 - 2)


def test_a_loop_of_unknown_length_is_told():
    def until(x):
        return jax.lax.while_loop(lambda y: jnp.sum(y) < 1e6, lambda y: y @ y, x)

    found = _counted(until, (4, 4))
    assert len(found.unknown_loops) == 1
    assert found.operations == 2 * 4**3


def test_of_branches_the_one_of_most_work_counts():
    def either(which, x):
        return jax.lax.cond(which, lambda y: y @ y @ y, lambda y: y + 1, x)

    assert _counted(either, _array(dtype=jnp.bool_), (4, 4)).operations == 2 * 2 * 4**3


def test_a_slice_of_a_large_array_is_read_alone():
    def layers(x, ws):
        return jax.lax.scan(lambda x, w: (x + w, None), x, ws)[0]

    rows, size = 64, 4096
    whole = 4 * rows * size
    found = _counted(layers, (size,), (rows, size)).bytes
    assert whole <= found < 8 * whole  # 64 times as much if each turn read all


def test_rows_changed_in_place_are_written_alone():
    def change(table, row):
        return jax.lax.fori_loop(0, 50, lambda i, t: jax.lax.dynamic_update_index_in_dim(t, row + i, i, 0), table)

    found = _counted(change, (1000, 64), (64,), donate_argnums=0).bytes
    assert found < 50 * 64 * 4 * 20 + 3 * 1000 * 64 * 4


@pytest.mark.parametrize(
    ("given", "wanted", "kind", "sent"),
    [
        (PartitionSpec("fsdp"), PartitionSpec(), "all-gather", 7 / 8 * 64 * 16 * 4),
        (PartitionSpec(None, "fsdp"), PartitionSpec("fsdp"), "all-to-all", 7 / 8 * 64 * 16 * 4 / 8),
    ],
)
def test_what_devices_send_is_counted(given, wanted, kind, sent):
    mesh = make_mesh(data=1, fsdp=8)
    x = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=NamedSharding(mesh, given))
    found = _counted(lambda x: x * 2, x, out_shardings=NamedSharding(mesh, wanted))
    assert found.sent() == pytest.approx({kind: sent})


def test_a_sum_over_devices_is_sent_twice():
    mesh = make_mesh(data=1, fsdp=8)
    cut = functools.partial(NamedSharding, mesh)
    a = jax.ShapeDtypeStruct((32, 64), jnp.float32, sharding=cut(PartitionSpec(None, "fsdp")))
    b = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=cut(PartitionSpec("fsdp")))
    found = _counted(jnp.matmul, a, b, out_shardings=cut(PartitionSpec()))
    assert found.sent() == pytest.approx({"all-reduce": 2 * 7 / 8 * 32 * 16 * 4})
    assert found.operations == 2 * 32 * 64 * 16 / 8


# As libtpu writes it: two products a turn, the counter raised by two; what lies on the chip is no traffic.
UNROLLED = """HloModule jit_f, is_scheduled=true

%body (p: (u32[], bf16[8,16], bf16[16,16])) -> (u32[], bf16[8,16], bf16[16,16]) {
  %p = (u32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)S(1)}, /*index=2*/bf16[16,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=0
  %x = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=1
  %w = bf16[16,16]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=2
  %y = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} convolution(%x, %w), dim_labels=bf_io->bf, metadata={op_name="a (b) c"}
  %z = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} convolution(%y, %w), dim_labels=bf_io->bf
  %two = u32[]{:T(128)} constant(2)
  %next = u32[]{:T(128)} add(%two, %i)
  ROOT %t = (u32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)S(1)}, bf16[16,16]{1,0:T(8,128)(2,1)}) tuple(%next, %z, %w)
}

%condition (q: (u32[], bf16[8,16], bf16[16,16])) -> pred[] {
  %q = (u32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)S(1)}, bf16[16,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %j = u32[]{:T(128)} get-tuple-element(%q), index=0
  %five = u32[]{:T(128)} constant(5)
  ROOT %lt = pred[]{:T(512)} compare(%j, %five), direction=LT
}

ENTRY %main (a: bf16[8,16], b: bf16[16,16]) -> bf16[8,16] {
  %a = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %b = bf16[16,16]{1,0:T(8,128)(2,1)} parameter(1)
  %zero = u32[]{:T(128)} constant(0)
  %start = u32[]{:T(128)} copy(%zero)
  %loop = (u32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)S(1)}, bf16[16,16]{1,0:T(8,128)(2,1)}) tuple(%start, %a, %b)
  %done = (u32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)S(1)}, bf16[16,16]{1,0:T(8,128)(2,1)}) while(%loop), condition=%condition, body=%body
  %out = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%done), index=1
  ROOT %all = bf16[64,16]{1,0:T(8,128)(2,1)} all-gather(%out), channel_id=3, replica_groups=mesh['x'=8,'y'=2] {'x'}, dimensions={0}
}
"""  # noqa: E501 - as it is written


def test_a_tpus_unrolled_loop_and_memory_on_the_chip_are_understood():
    found = count(parse(UNROLLED))
    assert found.operations == 3 * 2 * (2 * 8 * 16 * 16)
    assert 0 <= found.bytes - 3 * 2 * 16 * 16 * 2 <= 100  # the counter besides
    assert found.sent() == {"all-gather": 7 / 8 * 64 * 16 * 2}
    assert found.unknown_loops == []


def test_shapes_of_all_kinds_have_their_bytes():
    assert Shape("f32", (3, 5), 0).bytes == 60
    assert Shape("bf16", (3, 5), 1).bytes == 0
    assert Shape("bf16", (3, 5), 1).whole == 30
    assert Shape("s4", (3, 4), 0).bytes == 6
    assert Shape("token", (), 0).bytes == 0


def test_text_that_is_no_program_is_refused():
    with pytest.raises(UserError, match="no compiled program"):
        parse("module @jit_f {}")


CHIP = Chip(name="chip", operations=100.0, memory=1.0, bandwidth=10.0, interconnect=1.0)


def test_the_time_of_a_call_is_its_pieces_one_after_another():
    pieces = [
        Piece("products", "compute", 200.0, 5.0, 3),  # 2 s of products, 0.5 s of memory
        Piece("copies", "compute", 0.0, 20.0, 2),  # 2 s of memory
        Piece("beside", "all-gather", 0.0, 4.0, 1, hidden=True),
        Piece("waited for", "all-reduce", 0.0, 1.5, 2),
    ]
    found = estimate(Work(pieces, [], {}), CHIP)
    assert found.seconds == pytest.approx(3 * 2 + 2 * 2 + 3)
    assert found.exposed == pytest.approx(3)
    assert found.collectives == pytest.approx(7)
    assert found.utilisation == pytest.approx(6 / 13)
    late = estimate(Work([pieces[0], Piece("long", "all-gather", 0.0, 10.0, 1, hidden=True)], [], {}), CHIP)
    assert late.exposed == pytest.approx(10 - 6)
    assert estimate(Work([], [], {}), CHIP).utilisation == 0


def test_machines_have_their_devices_and_peaks():
    for name, machine in HARDWARE.items():
        assert machine.name == name
        assert machine.chip.operations / machine.chip.bandwidth > 100
        if machine.kind == "tpu":
            assert math.prod(int(n) for n in machine.topology.split(":")[1].split("x")) == machine.devices
        else:
            assert str(int(machine.chip.memory)) in machine.chip.target
