"""Pictures say what they show, nothing is cut off, colour is never alone, and the same values give the same bytes."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from itertools import combinations, pairwise

import matplotlib
import pytest
from matplotlib.text import Text

from hubprune import plots
from hubprune.core import extras
from hubprune.core.errors import MissingDependencyError
from hubprune.plots import style

LAYERS = 12
SCORES = [0.9, *(0.1 + 0.01 * layer for layer in range(LAYERS - 1))]
PANELS = {"attention": SCORES, "MLP": SCORES[::-1], "block": [0.2] * LAYERS}
LONG = "a-rather-long-organisation/with-a-rather-long-name-of-a-data-set-v2"
SERIES = {"Attention Drop": [(0, 70.0), (4, 69.5), (8, 66.0)], "Block Drop": [(0, 70.0), (4, 52.5), (8, 31.0)]}


def order():
    rows = [["kept"] * 5 for _ in range(LAYERS)]
    rows[3] = ["kept", "dropped-attn", "dropped-attn", "gone", "gone"]
    rows[7] = ["kept", "kept", "dropped-mlp", "dropped-mlp", "dropped-mlp"]
    return plots.dropping_order(rows, counts=[0, 1, 2, 3, 4], title="Dropping order")


PICTURES = {
    "curve": lambda: plots.curve(
        SERIES, baseline=70.2, chance=35.0, ylabel="mean accuracy (%)", title="Accuracy",
        steps={"Block Drop": ["attn", "mlp", "block"]},
    ),
    "perplexity": lambda: plots.curve(
        {"MLP Drop": [(0, 5.0), (2, 900.0), (4, 2.5e6)]}, baseline=5.0, ylabel="perplexity", title="P", scale="log"
    ),
    "training": lambda: plots.training(
        [(20, 0.1), (40, 0.05)], [(0, 0.23), (20, 0.06), (40, 0.05)], [(0, 2.28), (20, 1.93), (40, 1.91)],
        base_perplexity=1.82, title=f"Training of {LONG}",
    ),
    "one point": lambda: plots.curve({"only": [(3, 1.0)]}, baseline=None, ylabel="y", title="t"),
    "many methods": lambda: plots.curve(
        {f"{LONG} {n}": [(0, n), (1, n + 1)] for n in range(9)}, baseline=1, ylabel="perplexity", title=LONG * 3
    ),
    "small perplexities": lambda: plots.curve(
        {"MLP Drop": [(0, 12.7), (2, 13.1), (4, 31.0)]}, baseline=12.7, ylabel="perplexity", title="P", scale="log"
    ),
    "speed": lambda: plots.speed_curve(
        SERIES, intervals={label: [(20.0, 80.0)] * 3 for label in SERIES}, sdr=SERIES, title="Speed"
    ),
    "speed alone": lambda: plots.speed_curve(SERIES, title="Speed"),
    "order": order,
    "heat map": lambda: plots.heat_map(
        {name: [scores] * 4 for name, scores in PANELS.items()}, labels=["step1", "step2", LONG, "main"], title="Heat"
    ),
    "one revision": lambda: plots.heat_map({"attention": [[0.1, 0.2]]}, labels=["main"], title="Heat"),
    "importance": lambda: plots.importance(
        PANELS, dropped={"attention": [4, 5], "MLP": []}, absent={"MLP": [7]}, errors={"MLP": [0.01] * LAYERS},
        title="Importance",
    ),
    "nothing dropped": lambda: plots.importance({"attention": SCORES}, title="Importance"),
    "calibration": lambda: plots.side_by_side({"cosmopedia": PANELS, LONG: PANELS, "c4": PANELS}, title="Mixes"),
    "stability": lambda: plots.stability(
        {8: PANELS, 32: PANELS, 256: PANELS},
        agreement={name: [(8, 0.9), (32, 0.97), (256, 1.0)] for name in PANELS},
        title="Stability",
    ),
}  # fmt: skip


@pytest.fixture(params=PICTURES)
def figure(request):
    made = PICTURES[request.param]()
    made.draw_without_rendering()
    return made


def labels_of(figure):
    """Every text that a reader needs: titles, labels of axes, entries of legends."""
    yield figure._suptitle
    for axes in figure.axes:
        yield from (axes.title, axes._left_title, axes._right_title, axes.xaxis.label, axes.yaxis.label)
    for legend in figure.legends:
        yield from legend.get_texts()


def within(inner, outer):
    return inner.x0 >= outer.x0 and inner.y0 >= outer.y0 and inner.x1 <= outer.x1 and inner.y1 <= outer.y1


def test_nothing_is_cut_off(figure):
    for text in labels_of(figure):
        if text.get_text():
            assert within(text.get_window_extent(), figure.bbox), text.get_text()
    for axes in figure.axes:
        assert within(axes.get_tightbbox(), figure.bbox), axes.get_title(loc="left")


def test_a_legend_covers_no_data_and_no_axis(figure):
    for legend in figure.legends:
        for axes in figure.axes:
            assert not legend.get_window_extent().overlaps(axes.get_tightbbox())


def test_panels_do_not_run_into_each_other(figure):
    boxes = [axes.get_tightbbox() for axes in figure.axes if axes.get_label() != "<colorbar>"]
    for upper, lower in pairwise(boxes):
        assert upper.y0 >= lower.y1 - 1


def test_every_axis_says_what_it_shows(figure):
    for axes in figure.axes:
        assert axes.get_ylabel() or axes.get_label() == "<colorbar>"
    assert any(axes.get_xlabel() for axes in figure.axes)


@pytest.mark.parametrize("name", PICTURES)
def test_the_same_values_give_the_same_bytes_whatever_the_users_settings(name, tmp_path):
    first = [p.read_bytes() for p in plots.save(PICTURES[name](), tmp_path / "a", "x")]
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "svg.hashsalt": "other", "savefig.dpi": 20}):
        figure = PICTURES[name]()
        second = [p.read_bytes() for p in plots.save(figure, tmp_path / "b", "x")]
        again = [p.read_bytes() for p in plots.save(figure, tmp_path / "b", "x")]
    assert first == second == again
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["x.png", "x.svg"]


def test_the_svg_holds_its_labels_as_text_and_no_date(tmp_path):
    _, svg = plots.save(PICTURES["curve"](), tmp_path, "curve")
    root = ET.fromstring(svg.read_text())
    said = {"".join(e.itertext()).strip() for e in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {
        "Accuracy", "mean accuracy (%)", "sublayers dropped", "Attention Drop", "Block Drop", "base", "chance",
        "an MLP went",
    } <= said  # fmt: skip
    assert "date" not in svg.read_text().lower()
    assert root.find("{http://www.w3.org/2000/svg}title").text == "Accuracy"


def test_the_png_suits_a_card(tmp_path):
    png, _ = plots.save(PICTURES["curve"](), tmp_path, "curve")
    data = png.read_bytes()
    width, height = (int.from_bytes(data[start : start + 4]) for start in (16, 20))
    assert width == 8 * 150
    assert height >= 4.5 * 150
    assert b"Software" not in data


def test_names_of_data_sets_are_shown_as_they_are(tmp_path):
    series = {"_hidden$x^2$": [(0, 1.0), (1, 2.0)], "a<b>&c": [(0, 2.0), (1, 1.0)]}
    figure = plots.curve(series, baseline=None, ylabel="$", title="50 % of $100")
    assert [t.get_text().strip("\u2060") for t in figure.legends[0].get_texts()] == ["_hidden$x^2$", "a<b>&c"]
    _, svg = plots.save(figure, tmp_path, "x")
    ET.fromstring(svg.read_text())
    assert "50 % of $100" in svg.read_text()


# ---- what is drawn -----------------------------------------------------------------------------------------------


def test_a_curve_goes_through_its_points_with_the_base_as_a_level_line():
    axes = plots.curve(SERIES, baseline=70.2, ylabel="y", title="t").axes[0]
    drawn = [list(zip(*map(list, line.get_data()), strict=True)) for line in axes.lines]
    assert drawn[:2] == [list(points) for points in SERIES.values()]
    assert set(axes.lines[2].get_ydata()) == {70.2}


@pytest.mark.parametrize("top", [1.0005, 1.1, 1.9, 4.0, 12.0, 70.0, 900.0, 2e6])
@pytest.mark.parametrize("base", [1.01, 1.77, 12.7, 340.0])
def test_an_axis_of_perplexities_has_numbers_of_its_own_whatever_its_range(base, top):
    values = [(0, base), (1, base), (2, base * top)]
    figure = plots.curve({"x": values}, baseline=base, ylabel="perplexity", title="t", scale="log")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    low, high = axes.get_ylim()
    ticks = zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
    shown = {place: label.get_text() for label, place in ticks if low <= place <= high}
    assert len(set(shown.values())) == len(shown) >= 2
    assert all(float(text.replace(",", "")) == pytest.approx(place) for place, text in shown.items())


def test_speed_has_its_intervals_and_sdr_a_gap_where_there_is_none():
    ends = [(-3.0, 4.0), (5.0, 9.0), (8.0, 20.0)]
    points = [(1, 0.5), (2, 7.0), (3, 12.0)]
    figure = plots.speed_curve({"x": points}, intervals={"x": ends}, sdr={"x": [(1, 0.1), (3, 0.4)]}, title="t")
    speed, sdr = figure.axes
    whiskers = [tuple(line.get_ydata()) for line in speed.lines if list(line.get_xdata()) != [1, 2, 3]]
    assert whiskers == ends
    assert [str(value) for value in sdr.lines[0].get_ydata()] == ["0.1", "nan", "0.4"]


def test_the_steps_of_a_joint_drop_are_told_by_their_markers():
    axes = plots.curve({"Joint": SERIES["Block Drop"]}, baseline=None, ylabel="y", title="t",
                       steps={"Joint": ["attn", "mlp", "attn"]}).axes[0]  # fmt: skip
    found = {line.get_marker(): list(line.get_xdata()) for line in axes.lines if line.get_linestyle() == "None"}
    assert (found["X"], found["*"]) == ([0, 8], [4])


def test_the_order_has_one_cell_per_layer_and_number_of_drops():
    axes = order().axes[0]
    cells = {tuple(c.get_facecolor()[0][:3]): len(c.get_paths()) for c in axes.collections}
    assert sum(cells.values()) == LAYERS * 5
    assert sorted(cells.values()) == [2, 2, 3, LAYERS * 5 - 7]
    assert [c.get_hatch() for c in axes.collections] == [None, "////", "....", "xxxx"]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="zip"):
        plots.dropping_order([["kept"]], counts=[0, 1], title="x")


def test_the_colours_of_a_heat_map_leave_the_first_layer_out():
    figure = plots.heat_map({"attention": [[0.9, 0.1, 0.3], [0.8, 0.2, 0.25]]}, labels=["a", "b"], title="t")
    image = figure.axes[0].images[0]
    assert image.get_clim() == (0.1, 0.3)
    assert image.get_array().tolist() == [[0.9, 0.1, 0.3], [0.8, 0.2, 0.25]]
    assert "layer 0 is beyond" in figure.axes[0].get_title(loc="left")
    assert image.cmap(1.0)[:3] < image.cmap(0.0)[:3], "low scores have to be the light ones"


def test_dropped_layers_differ_from_kept_ones_by_hatch_too():
    axes = plots.importance({"attention": SCORES}, dropped={"attention": [4, 5]}, title="t").axes[0]
    hatched = [round(bar.get_x() + bar.get_width() / 2) for bar in axes.patches if bar.get_hatch()]
    assert hatched == [4, 5]


def test_what_a_base_lacks_already_is_no_kept_layer_of_no_importance():
    figure = plots.importance(
        {"attention": [0.3, 0.0, 0.1]}, dropped={"attention": [2]}, absent={"attention": [1]}, title="t"
    )
    assert [list(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() == "x"] == [[1]]
    assert "not in the base" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_layer_that_towers_over_the_others_is_cut_off_and_told():
    axes = plots.importance({"attention": SCORES}, title="t").axes[0]
    assert axes.get_ylim()[1] < 0.5
    assert axes.get_title(loc="right") == "↑ layer 0 is cut off: 0.9"
    level = plots.importance({"attention": [0.3, 0.2, 0.1]}, title="t").axes[0]
    assert level.get_title(loc="right") == ""


# ---- style -------------------------------------------------------------------------------------------------------


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("colour", "least"), [(style.INK, 12), (style.QUIET, 4.5), *((c, 2) for c in style.COLOURS)])
def test_text_and_lines_stand_out_from_the_panel(colour, least):
    assert (luminance(style.PANEL) + 0.05) / (luminance(colour) + 0.05) >= least


def test_the_panel_is_opaque_so_that_a_dark_page_does_not_shine_through(figure):
    assert figure.get_facecolor()[3] == 1
    assert all(axes.get_facecolor()[3] == 1 for axes in figure.axes)


def test_any_two_of_28_lines_differ_in_two_ways():
    for one, other in combinations((style.look(n) for n in range(28)), 2):
        assert sum(one[key] != other[key] for key in ("color", "marker", "linestyle")) >= 2


def test_texts_are_at_least_ten_points(figure):
    assert all(text.get_fontsize() >= 10 for text in figure.findobj(Text) if text.get_text())


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError) as raised:
        PICTURES["curve"]()
    assert "plots]" in (raised.value.hint or "")


def test_the_package_is_light_to_import():
    source = "import sys, hubprune.plots; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
