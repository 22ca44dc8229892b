"""Line charts as inline SVG: no script, no picture, text that keeps its size at every width.

Across, everything is placed in percent of the plot's width, so that a chart fills a phone and a desk screen alike;
down, in pixels. Colours are class names that the style sheet defines, so that they change with a dark screen.
"""

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from mimkit.report.formatting import count, log_ticks, short, tick_labels, ticks
from mimkit.report.read import Points

MOST_POINTS = 600  # of a drawn curve
MOST_STOPS = 64  # places along a chart that answer to the pointer
COLORS = 6
SHADES = 12


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve.

    Args:
        label: its name.
        points: (x, y) with ascending x; a y of NaN leaves a gap.
        color: a class name, from `color` or `shade`.
        dots: mark each point.
        faint: drawn pale, behind the others.
        spread: as (x, low, high), a band of uncertainty.
    """

    label: str
    points: Points
    color: str
    dots: bool = False
    faint: bool = False
    spread: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True, kw_only=True)
class ReferenceLine:
    """A dashed line across the chart to compare with; without a label it stays out of the legend."""

    value: float
    label: str = ""
    color: str = "ink"


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    size: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value stands between the ends, 0 to the axis's size."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.size * (value - low) / (high - low)


def color(index: int) -> str:
    """The class of one of several unordered curves; after six, the same colours dashed."""
    return f"c{index % COLORS}" + (f" dash{index // COLORS % 3}" if index >= COLORS else "")


def shade(index: int, of: int) -> str:
    """The class of one of several ordered curves, from dark blue for the first to yellow for the last."""
    return f"r{round(index / max(1, of - 1) * (SHADES - 1))}"


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_name: str = "step",
    unit: str = "",
    references: Sequence[ReferenceLine] = (),
    marks: Sequence[tuple[float, str]] = (),
    log: bool = False,
    zero: bool = False,
    height: int = 190,
) -> Markup:
    """A chart with a legend, axes, and values that appear under the pointer.

    Args:
        series: curves; those without a finite point are left out.
        title: what a screen reader says.
        x_name: what stands along the horizontal axis.
        unit: written behind each value, such as " %".
        references: dashed lines to compare with.
        marks: (x, what happened there), shown as vertical lines.
        log: a logarithmic vertical axis, if all values are positive.
        zero: the vertical axis begins at 0.
        height: pixels of the plot, without its labels.

    Returns:
        HTML; empty if there is nothing to draw.
    """
    series = [one for one in series if any(math.isfinite(y) for _, y in one.points)]
    if not series:
        return Markup("")
    xs = sorted({x for one in series for x, _ in one.points} | {x for x, _ in marks})
    ys = [y for one in series for _, y in one.points if math.isfinite(y)]
    log = log and min(ys) > 0 and not zero
    ys += [reference.value for reference in references if not log or reference.value > 0]
    ys += [y for one in series for _, low, high in one.spread for y in (low, high) if not log or y > 0]
    across = _horizontal(xs[0], xs[-1])
    down = _vertical(min(ys), max(ys), height, log=log, zero=zero)

    at_y = log_ticks(down.low, down.high) if down.log else ticks(down.low, down.high)
    names = [label + unit for label in tick_labels(at_y, log=down.log)]
    room = 12 + 6.6 * max(map(len, names))
    at_x = ticks(across.low, across.high) if len(xs) > 1 else xs
    body = [
        *_grid(at_y, names, down),
        *_x_labels(at_x, across, x_name, height),
        *(_mark(across.place(x), what, height) for x, what in marks),
        f'<svg width="100%" height="{height}" viewBox="0 0 1000 {height}" preserveAspectRatio="none">',
        *(_band(one, across, down) for one in series if one.spread),
        *(_reference(reference, down) for reference in references if not log or reference.value > 0),
        *(_curve(one, across, down) for one in sorted(series, key=lambda one: not one.faint)),
        "</svg>",
        *(_dots(one, across, down) for one in series if one.dots or _alone(one)),
        *_stops(series, across, down, x_name, unit),
    ]
    return Markup(
        f'{_legend(series, references, unit)}<div class="plot" style="padding-left:{room:.0f}px">'
        f'<svg width="100%" height="{height}" role="img" aria-label="{escape(title)}">{"".join(body)}</svg></div>'
    )


def thin(found: Points, most: int = MOST_POINTS) -> Points:
    """At most about `most` points that keep every peak: of each stretch its lowest and its highest, and its gaps."""
    if len(found) <= most:
        return found
    size = math.ceil(2 * len(found) / most)
    kept: Points = []
    for start in range(0, len(found), size):
        stretch = found[start : start + size]
        finite = [point for point in stretch if math.isfinite(point[1])]
        ends = {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])} if finite else set()
        gap = [point for point in stretch if not math.isfinite(point[1])][:1]
        kept += sorted([*ends, *gap], key=lambda point: point[0])
    return [found[0], *(point for point in kept if found[0][0] < point[0] < found[-1][0]), found[-1]]


def smooth(found: Points, width: int) -> Points:
    """The mean of each point and up to width // 2 on either side; gaps are passed over."""
    finite = [point for point in found if math.isfinite(point[1])]
    sums = [0.0, *itertools.accumulate(y for _, y in finite)]
    means = []
    for place, (x, _) in enumerate(finite):
        first, end = max(0, place - width // 2), min(len(finite), place + width // 2 + 1)
        means.append((x, (sums[end] - sums[first]) / (end - first)))
    return means


def _horizontal(low: float, high: float) -> _Axis:
    if high == low:
        return _Axis(low - 1, high + 1, 100)
    return _Axis(0 if 0 < low < high / 8 else low, high, 100)  # the first logged step stands close enough to 0


def _vertical(low: float, high: float, height: int, *, log: bool, zero: bool) -> _Axis:
    if log and high > low:
        margin = (high / low) ** 0.05
        return _Axis(low / margin, high * margin, height, log=True)
    if zero:
        low = min(0.0, low)
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return _Axis(low if zero and low == 0 else low - margin, high + margin, height)


def _y(down: _Axis, value: float) -> float:
    return down.size - down.place(value)


def _grid(values: list[float], names: list[str], down: _Axis) -> list[str]:
    lines = []
    for value, name in zip(values, names, strict=True):
        y = f"{_y(down, value):.1f}"
        lines.append(f'<line class="grid" x2="100%" y1="{y}" y2="{y}"/>')
        lines.append(f'<text class="tick" x="-8" y="{y}" dy=".34em" text-anchor="end">{escape(name)}</text>')
    return lines


def _x_labels(values: list[float], across: _Axis, x_name: str, height: int) -> list[str]:
    axis = [f'<line class="axis" x2="100%" y1="{height}" y2="{height}"/>']
    for value, name in zip(values, tick_labels(values), strict=True):
        x = f"{across.place(value):.2f}%"
        axis.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{height}" y2="{height + 4}"/>')
        axis.append(f'<text class="tick" x="{x}" y="{height + 18}" text-anchor="middle">{escape(name)}</text>')
    axis.append(f'<text class="tick name" x="100%" y="{height + 35}" text-anchor="end">{escape(x_name)}</text>')
    return axis


def _mark(place: float, what: str, height: int) -> str:
    x = f"{place:.2f}%"
    line = f'<line class="mark" x1="{x}" x2="{x}" y1="0" y2="{height}"/>'
    return f"<g><title>{escape(what)}</title>{line}</g>"


def _band(one: Series, across: _Axis, down: _Axis) -> str:
    floor = down.low

    def place(x: float, y: float) -> str:
        return f"{10 * across.place(x):.1f},{_y(down, max(y, floor)):.1f}"

    edge = [place(x, high) for x, _, high in one.spread] + [place(x, low) for x, low, _ in reversed(one.spread)]
    return f'<polygon class="band {one.color}" points="{" ".join(edge)}"/>'


def _reference(reference: ReferenceLine, down: _Axis) -> str:
    y = f"{_y(down, reference.value):.1f}"
    return f'<path class="reference {reference.color}" d="M0 {y}H1000"/>'


def _curve(one: Series, across: _Axis, down: _Axis) -> str:
    path, pen = [], "M"
    for x, y in thin(one.points):
        if not math.isfinite(y) or (down.log and y <= 0):
            pen = "M"
            continue
        path.append(f"{pen}{10 * across.place(x):.1f} {_y(down, y):.1f}")
        pen = "L"
    return f'<path class="curve {one.color}{" faint" if one.faint else ""}" d="{"".join(path)}"/>'


def _alone(one: Series) -> bool:
    return sum(math.isfinite(y) for _, y in one.points) == 1


def _dot(one: Series, x: float, y: float, across: _Axis, down: _Axis, radius: float) -> str:
    return f'<circle class="{one.color}" cx="{across.place(x):.2f}%" cy="{_y(down, y):.1f}" r="{radius}"/>'


def _dots(one: Series, across: _Axis, down: _Axis) -> str:
    if len(one.points) > 60:
        return ""
    return "".join(_dot(one, x, y, across, down, 2.6) for x, y in one.points if math.isfinite(y))


def _stops(series: Sequence[Series], across: _Axis, down: _Axis, x_name: str, unit: str) -> list[str]:
    """Strips that show the values at their middle; the title of each lists one curve a line, as its dots do."""
    xs = sorted({x for one in series for x, y in one.points if math.isfinite(y)})
    if len(xs) > MOST_STOPS:
        xs = sorted({xs[round(k * (len(xs) - 1) / (MOST_STOPS - 1))] for k in range(MOST_STOPS)})
    edges = [across.low, *((a + b) / 2 for a, b in itertools.pairwise(xs)), across.high]
    strips = []
    for x, (left, right) in zip(xs, itertools.pairwise(edges), strict=True):
        lines = [f"{x_name} {count(x) if x == int(x) else short(x)}"]
        dots = []
        for one in series:
            nearest = _nearest(one.points, x)
            if nearest and left <= nearest[0] <= right:
                lines.append(f"{one.label}: {short(nearest[1])}{unit}")
                dots.append(_dot(one, *nearest, across, down, 3.6))
        at, start = f"{across.place(x):.2f}%", across.place(left)
        wide = max(across.place(right) - start, 0.1)
        strips.append(
            f'<g class="stop"><title>{escape(chr(10).join(lines))}</title>'
            f'<rect x="{start:.2f}%" width="{wide:.2f}%" height="{down.size}"/>'
            f'<line x1="{at}" x2="{at}" y2="{down.size}"/>{"".join(dots)}</g>'
        )
    return strips


def _nearest(found: Points, x: float) -> tuple[float, float] | None:
    place = bisect.bisect_left(found, x, key=lambda point: point[0])
    around = [point for point in found[max(0, place - 1) : place + 1] if math.isfinite(point[1])]
    return min(around, key=lambda point: abs(point[0] - x), default=None)


def _legend(series: Sequence[Series], references: Sequence[ReferenceLine], unit: str) -> str:
    if len(series) == 1 and not references:
        return ""
    items = []
    for one in series:
        final = next(y for _, y in reversed(one.points) if math.isfinite(y))
        value = "" if one.faint else _value(final, unit)
        items.append(f"<li>{_key('curve', one.color, faint=one.faint)}{escape(one.label)}{value}</li>")
        items += [
            _reference_item(reference, unit)
            for reference in references
            if reference.label and reference.color == one.color
        ]
    colors = {one.color for one in series}
    items += [
        _reference_item(reference, unit)
        for reference in references
        if reference.label and reference.color not in colors
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def _reference_item(reference: ReferenceLine, unit: str) -> str:
    return f"<li>{_key('reference', reference.color)}{escape(reference.label)}{_value(reference.value, unit)}</li>"


def _value(value: float, unit: str) -> str:
    return f" <b>{escape(short(value) + unit)}</b>"


def _key(kind: str, css: str, *, faint: bool = False) -> str:
    classes = f"{kind} {css}{' faint' if faint else ''}"
    return f'<svg class="key" width="20" height="10"><path class="{classes}" d="M1 5H19"/></svg>'
