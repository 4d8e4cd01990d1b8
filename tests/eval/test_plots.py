"""Pictures: they draw the right numbers, survive many methods, few users and nothing, and nothing is cut off."""

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from pref_jax.eval.figures import canvas, plots
from pref_jax.eval.figures.maps import principal_plane
from pref_jax.eval.metrics import Interval
from pref_jax.eval.reporting import results

NAMES = ["a", "VPL $z$", "_private", "a very long name of a method that nobody would want to read in a legend", "x_{"]
KINDS = ("accuracy", "common", "controversial")


def _interval(mean, half: float | None = 0.03):
    ends = (None, None) if half is None else (mean - half, mean + half)
    return Interval(mean=mean, low=ends[0], high=ends[1], n=5, over="users")


def _rows(count, keys=tuple(f"{side}/{kind}" for side in ("seen", "unseen") for kind in KINDS)):
    metrics = {key: _interval(0.4 + 0.05 * k) for k, key in enumerate(keys)}
    names = [*NAMES, *(f"method {i}" for i in range(20))][:count]
    return [results.result_row(method=name, seed=0, metrics=metrics, seconds=1) for name in names]


def _nothing_cut_off(fig: Figure) -> None:
    """All titles, labels and legends lie within the picture, and no legend touches the data."""
    drawing = FigureCanvasAgg(fig)
    with canvas.style():
        drawing.draw()
    renderer = drawing.get_renderer()
    legends = [legend.get_window_extent(renderer) for legend in fig.legends]
    boxes = [box for ax in fig.axes if (box := ax.get_tightbbox(renderer)) is not None]
    texts = [text.get_window_extent(renderer) for text in fig.texts if text.get_text()]
    for box in (*legends, *boxes, *texts):
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= fig.bbox.x1 + 1
        assert box.y1 <= fig.bbox.y1 + 1
    assert not any(legend.overlaps(box) for legend in legends for box in boxes)
    assert all(float(text.get_fontsize()) >= 9 for text in fig.findobj(Text) if isinstance(text, Text))


@pytest.mark.parametrize("count", [1, 4, 5, 12, 25])
def test_bars_show_means_and_intervals(count):
    fig = plots.accuracy_bars(_rows(count))
    _nothing_cut_off(fig)
    assert [ax.get_title() for ax in fig.axes] == ["seen users", "unseen users"]
    heights = [50 + bar.get_height() for bar in fig.axes[0].patches if isinstance(bar, Rectangle)]
    np.testing.assert_allclose(np.reshape(heights, (count, 3)), np.tile([40.0, 45.0, 50.0], (count, 1)))
    assert len(fig.legends[0].get_texts()) == count
    assert any(
        np.allclose(np.asarray(line.get_ydata()), 50) and line.get_linestyle() == "--" for line in fig.axes[0].lines
    )


def test_bars_of_partial_rows():
    fig = plots.accuracy_bars([*_rows(2, ("seen/accuracy",)), *_rows(3, ("seen/common",))[2:]])
    _nothing_cut_off(fig)
    (ax,) = fig.axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["all pairs", "common"]
    assert len(ax.patches) == 3


def test_bars_stay_within_percent():
    rows = [results.result_row(method="m", seed=0, metrics={"seen/accuracy": _interval(0.9, 4.0)}, seconds=1)]
    low, high = plots.accuracy_bars(rows).axes[0].get_ylim()
    assert low >= -1
    assert high <= 101


@pytest.mark.parametrize(("num_users", "num_groups"), [(1, 1), (2, 1), (6, 1), (300, 4), (300, 30)])
@pytest.mark.parametrize("seen_share", [0.0, 0.8, 1.0])
def test_embedding_map(num_users, num_groups, seen_share):
    rng = np.random.default_rng(0)
    groups = [f"group {g}" if g else None for g in rng.integers(num_groups + 1, size=num_users)]
    seen = rng.random(num_users) < seen_share
    fig = plots.embedding_map(rng.normal(size=(num_users, 8)).astype(np.float32), groups, seen)
    _nothing_cut_off(fig)
    dots, triangles = fig.axes[0].collections
    assert (len(np.asarray(dots.get_offsets())), len(np.asarray(triangles.get_offsets()))) == (
        seen.sum(),
        (~seen).sum(),
    )
    assert len(np.asarray(triangles.get_facecolor())) == 0
    assert len(fig.legends[0].get_texts()) <= 12 + 5


def test_embedding_map_colours_follow_the_groups():
    groups = ["b", None, "a", "b"]
    fig = plots.embedding_map(np.eye(4), groups, np.ones(4, bool))
    dots = fig.axes[0].collections[0]
    offsets, faces = np.asarray(dots.get_offsets()), np.asarray(dots.get_facecolor())
    at = {tuple(np.round(xy, 6)): to_hex(tuple(face)) for xy, face in zip(offsets, faces, strict=True)}
    plane, _ = principal_plane(np.eye(4))
    expected = {"a": canvas.shade(0), "b": canvas.shade(1), None: canvas.GREY}
    for xy, group in zip(plane, groups, strict=True):
        assert at[tuple(np.round(xy, 6))].lower() == expected[group].lower()


@pytest.mark.parametrize("shape", [(50, 6), (3, 6), (5, 1), (1, 4), (4, 2)])
def test_principal_plane_matches_svd(shape):
    points = np.random.default_rng(1).normal(size=shape)
    plane, explained = principal_plane(points)
    centred = points - points.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    expected = np.zeros((shape[0], 2))
    expected[:, : min(2, *shape)] = np.abs(u * s)[:, :2]
    np.testing.assert_allclose(np.abs(plane), expected, atol=1e-7)
    shares = np.append(s**2, [0.0, 0.0])[:2] / max(s.dot(s), 1e-300)
    np.testing.assert_allclose(explained, shares, atol=1e-12)


@pytest.mark.parametrize(("num_users", "num_groups", "size"), [(1, 1, 1), (300, 2, 2), (300, 30, 4), (40, 3, 25)])
@pytest.mark.parametrize("seen_share", [0.0, 0.8, 1.0])
def test_user_weights(num_users, num_groups, size, seen_share):
    rng = np.random.default_rng(0)
    groups = [f"group {g}" if g else None for g in rng.integers(num_groups + 1, size=num_users)]
    seen = rng.random(num_users) < seen_share
    fig = plots.user_weights(rng.normal(size=(num_users, size)).astype(np.float32), groups, seen)
    _nothing_cut_off(fig)
    dots, triangles, *means = fig.axes[0].collections
    counts = [len(np.asarray(part.get_offsets())) for part in (dots, triangles)]
    assert counts == [size * seen.sum(), size * (~seen).sum()]
    assert len(means) == min(len(set(groups)), 14)
    assert [tick.get_text() for tick in fig.axes[0].get_xticklabels()] == [str(k + 1) for k in range(size)]


def test_user_weights_stand_at_their_reward_group_and_value():
    weights = np.array([[0.1, 0.9], [0.7, 0.3], [0.2, 0.8]])
    fig = plots.user_weights(weights, ["a", "b", "a"], np.ones(3, bool))
    dots, _, *means = fig.axes[0].collections
    at = np.asarray(dots.get_offsets()).reshape(3, 2, 2)
    np.testing.assert_allclose(at[..., 1], weights)
    np.testing.assert_array_equal(np.round(at[..., 0]), [[0, 1]] * 3)
    assert (at[0, :, 0] < at[1, :, 0]).all()
    assert (at[2, :, 0] < at[1, :, 0]).all()
    heights = [[np.asarray(path.vertices)[0, 1] for path in lines.get_paths()] for lines in means]
    np.testing.assert_allclose(heights, [[0.15, 0.85], [0.7, 0.3]])


@pytest.mark.parametrize(("count", "answers", "size"), [(1, 1, 1), (2, 9, 2), (4, 9, 25)])
def test_weight_paths(count, answers, size):
    rng = np.random.default_rng(0)
    users = {f"user {i}": (rng.normal(size=(answers, size)), rng.random((answers, size))) for i in range(count)}
    fig = plots.weight_paths(users)
    _nothing_cut_off(fig)
    mean, deviation = users["user 0"]
    drawn = [np.asarray(line.get_ydata(), float) for line in fig.axes[0].lines]
    np.testing.assert_allclose(drawn, mean.T)
    band = np.asarray(fig.axes[0].collections[-1].get_paths()[0].vertices)
    np.testing.assert_allclose(band[:, 1].min(), (mean - 1.96 * deviation)[:, -1].min())
    np.testing.assert_allclose(band[:, 1].max(), (mean + 1.96 * deviation)[:, -1].max())
    assert len(fig.legends[0].get_texts()) == size


@pytest.mark.parametrize("panels", [None, True, False])
@pytest.mark.parametrize("count", [1, 5, 12])
def test_learning_curves(count, panels):
    steps = np.arange(0, 2000, 20)
    names = [*NAMES, *(f"method {i}" for i in range(20))][:count]
    fig = plots.learning_curves({n: (steps, np.exp(-steps / 500)) for n in names}, title="Loss " * 30, panels=panels)
    _nothing_cut_off(fig)
    assert sum(len(ax.lines) for ax in fig.axes) == count
    assert fig.axes[0].get_xscale() == "symlog"


def test_learning_curves_short():
    fig = plots.learning_curves({"one": ([5], [0.3]), "empty": ([], [])})
    _nothing_cut_off(fig)
    assert fig.axes[0].get_xscale() == "linear"


@pytest.mark.parametrize(("gates", "experts", "tables"), [(1, 1, 1), (12, 8, 1), (2, 8, 5), (24, 8, 2), (3, 2, 2)])
def test_expert_usage(gates, experts, tables):
    rng = np.random.default_rng(2)
    usage = {f"group {i} with a long name": rng.integers(9, size=(gates, experts)) for i in range(tables)}
    usage["group 0 with a long name"][0] = 0
    fig = plots.expert_usage(usage, gates=[f"layers.{g}.q_proj" for g in range(gates)])
    _nothing_cut_off(fig)
    drawn = np.array([float(text.get_text()) for text in fig.axes[0].texts]).reshape(gates, experts)
    counts = usage["group 0 with a long name"]
    expected = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    np.testing.assert_allclose(drawn, expected, atol=0.501)
    single = plots.expert_usage(usage["group 0 with a long name"])
    _nothing_cut_off(single)


@pytest.mark.parametrize("count", [1, 12])
def test_few_shot(count):
    names = [*NAMES, *(f"method {i}" for i in range(20))][:count]
    curves = {n: {k: _interval(0.5 + 0.02 * k, None if k == 1 else 0.05) for k in (8, 1, 2, 4)} for n in names}
    fig = plots.few_shot(curves)
    _nothing_cut_off(fig)
    np.testing.assert_array_equal(fig.axes[0].lines[0].get_xdata(), [1, 2, 4, 8])
    np.testing.assert_allclose(np.asarray(fig.axes[0].lines[0].get_ydata()), [52, 54, 58, 66])
    _nothing_cut_off(plots.few_shot({"zero too": {0: _interval(0.5), 5: _interval(0.6)}}))


@pytest.mark.parametrize("points", [(1, 2, 4, 8), (0.01, 0.1, 1.0), (3,)])
def test_sweep(points):
    curves = {n: {x: _interval(0.6 + 0.01 * i, 0.04) for i, x in enumerate(points)} for n in NAMES[:2]}
    levels = {"a level": _interval(0.7, 0.15), "another one": _interval(0.55, None)}
    fig = plots.sweep(curves, xlabel="what was varied", title="A sweep", levels=levels)
    _nothing_cut_off(fig)
    ax = fig.axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == [f"{x:g}" for x in points]
    assert ax.get_xlabel() == "what was varied"
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [*map(canvas.clean, curves), *levels]
    # Across at its mean, and its interval within the axes' height.
    heights = [np.asarray(line.get_ydata(), float) for line in ax.lines]
    assert any(np.allclose(y, 70) for y in heights)
    assert any(len(y) == 2 and np.allclose(y, [55, 85]) for y in heights)
    assert ax.get_ylim()[1] >= 85


@pytest.mark.parametrize(("steps", "experts"), [(1, 2), (13, 8), (400, 20)])
def test_gate_curves(steps, experts):
    usage = np.random.default_rng(0).dirichlet(np.ones(experts), steps)
    fig = plots.gate_curves(range(1, steps + 1), usage, np.linspace(np.log(experts), 0, steps))
    top, bottom = fig.axes
    assert len(top.lines) == experts + 1  # and the level of even use
    drawn = [np.asarray(line.get_ydata(), float) for line in (top.lines[-2], top.lines[-1], bottom.lines[-1])]
    np.testing.assert_allclose(drawn[0], 100 * usage[:, -1])
    np.testing.assert_allclose(drawn[1], 100 / experts)
    np.testing.assert_allclose(drawn[2], np.log(experts))
    assert top.get_ylim()[1] > 100 * usage.max()
    _nothing_cut_off(fig)


def test_nothing_to_show():
    figures = [
        plots.accuracy_bars([]),
        plots.embedding_map(np.zeros((0, 3)), [], np.zeros(0, bool)),
        plots.user_weights(np.zeros((0, 3)), [], np.zeros(0, bool)),
        plots.weight_paths({}),
        plots.learning_curves({}),
        plots.expert_usage({}),
        plots.expert_usage(np.zeros((0, 4))),
        plots.few_shot({"a": {}}),
        plots.gate_curves([], [], []),
    ]
    for fig in figures:
        assert "to show" in fig.axes[0].texts[0].get_text()


def test_save_is_atomic_and_leaves_the_settings_alone(tmp_path, monkeypatch):
    before = dict(matplotlib.rcParams)
    path = plots.save(plots.accuracy_bars(_rows(2)), tmp_path / "plots" / "a.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
    assert dict(matplotlib.rcParams) == before
    old = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    broken = plots.accuracy_bars([])
    monkeypatch.setattr(broken, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.save(broken, path)
    assert path.read_bytes() == old


def test_long_names_keep_both_ends():
    assert canvas.clean("x" * 30 + "y" * 30, limit=11) == "xxxxx…yyyyy"
    assert canvas.clean("$a$\n b") == r"\$a\$ b"
