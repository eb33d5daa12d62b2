"""The report's charts: numbers in, inline SVG out.

Colours are classes that the page's style sheet fills in, for light and dark alike. Each drawing has
a title and a description for those who hear the page, and no meaning hangs on colour alone: every
bar and dot carries its name and number.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import markupsafe

from grit_jax.quickstart.report.wording import decimal, plain

# A raw curve is drawn in this many buckets, each with its lowest and highest value, so that no spike
# is lost.
RAW_BUCKETS = 140
SMOOTHING = 0.04  # width of the moving average, as a share of the curve


@dataclasses.dataclass(frozen=True)
class Bar:
    """One row of bars; `group` stands above the first bar of its group, `marker` is a second value:
    a diamond."""

    label: str
    value: float
    text: str
    kind: str
    group: str = ""
    marker: float | None = None
    tip: str = ""


@dataclasses.dataclass(frozen=True)
class BarStyle:
    """The frame of a bar chart.

    Attributes:
      width: of the whole chart, in units of its view box.
      label_width: of the names at the left.
      axis: values of the grid lines, from zero on. axis_texts: what stands below each.
      mono: names in the typeface of code.
    """

    width: float
    label_width: float
    axis: Sequence[float]
    axis_texts: Sequence[str]
    mono: bool = False


@dataclasses.dataclass(frozen=True)
class Reference:
    """A vertical line across a bar chart."""

    value: float
    kind: str
    name: str


def escape(value: object) -> markupsafe.Markup:
    """Text for HTML: markup characters as entities, unprintable ones replaced."""
    return markupsafe.escape(plain(value))


def _number(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _frame(
    identity: str, width: float, height: float, title: str, description: str, body: str
) -> markupsafe.Markup:
    return markupsafe.Markup(
        f'<svg viewBox="0 0 {_number(width)} {_number(height)}" role="img"'
        f' aria-labelledby="{identity}-t {identity}-d"><title'
        f' id="{identity}-t">{escape(title)}</title><desc'
        f' id="{identity}-d">{escape(description)}</desc>{body}</svg>'
    )


def _text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    return (
        f'<text x="{_number(x)}" y="{_number(y)}" text-anchor="{anchor}"'
        f' class="{kind}">{escape(content)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return (
        f'<line x1="{_number(x1)}" y1="{_number(y1)}" x2="{_number(x2)}" y2="{_number(y2)}"'
        f' class="{kind}"/>'
    )


def nice_step(span: float, at_most: int = 5) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that cuts `span` into at most `at_most`
    pieces."""
    if not span > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / at_most))
    return next(
        (m * power for m in (1, 2, 2.5, 5, 10) if span / (m * power) <= at_most + 1e-9), 10 * power
    )


def ticks(low: float, high: float, at_most: int = 5) -> list[float]:
    """Round values that cover `low` to `high`."""
    step = nice_step(high - low, at_most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, max(last, first + 1) + 1)]


def tick_texts(values: Sequence[float], unit: str = "") -> list[str]:
    """The values of an axis with as many decimals as its step needs."""
    step = min((b - a for a, b in itertools.pairwise(values)), default=1.0)
    decimals = next((d for d in range(8) if abs(step * 10**d - round(step * 10**d)) < 1e-6), 8)
    return [f"{v:,.{decimals}f}{unit}" if v else "0" for v in values]


def smoothed(values: Sequence[float], share: float = SMOOTHING) -> list[float]:
    """Centred moving average; at the ends the window is what is there."""
    half, sums = max(1, round(len(values) * share / 2)), [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    edges = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [(sums[b] - sums[a]) / (b - a) for a, b in edges]


def _thinned(points: Sequence[tuple[float, float]], buckets: int) -> list[tuple[float, float]]:
    """The lowest and the highest point of each bucket, in their order."""
    if len(points) <= 2 * buckets:
        return list(points)
    kept = []
    for b in range(buckets):
        bucket = points[b * len(points) // buckets : (b + 1) * len(points) // buckets]
        kept += sorted({min(bucket, key=lambda p: p[1]), max(bucket, key=lambda p: p[1])})
    return kept


def curve(
    identity: str, title: str, what: str, points: Sequence[tuple[float, float]]
) -> markupsafe.Markup:
    """A loss against the step: a smoothed line over the faint raw one, the last value written
    beside its end."""
    width, height, left, right, top, bottom = 280.0, 190.0, 32.0, 42.0, 12.0, 36.0
    steps, values = [p[0] for p in points], [p[1] for p in points]
    average = smoothed(values)
    low = min(values)
    y_ticks = ticks(0.0 if low >= 0 and low < 0.6 * max(values) else low, max(values) or 1.0, 5)
    x_ticks = [
        t
        for t in ticks(min(steps), max(max(steps), min(steps) + 1), 3)
        if min(steps) <= t <= max(steps)
    ] or [steps[0]]
    x_ticks += [steps[-1]] if steps[-1] - x_ticks[-1] > 0.15 * (max(steps) - min(steps)) else []

    def x(step: float) -> float:
        span = max(steps) - min(steps)
        return left + (width - left - right) * ((step - min(steps)) / span if span else 0.5)

    def y(value: float) -> float:
        return (
            height
            - bottom
            - (height - top - bottom) * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        )

    def path(line: Sequence[tuple[float, float]], kind: str) -> str:
        joined = " ".join(f"{_number(x(s))},{_number(y(v))}" for s, v in line)
        return f'<polyline points="{joined}" class="{kind}"/>'

    body = "".join(
        _line(left, y(t), width - right, y(t), "grid")
        + _text(left - 6, y(t) + 4, text, "tick", "end")
        for t, text in zip(y_ticks, tick_texts(y_ticks), strict=True)
    )
    body += "".join(
        _text(x(t), height - bottom + 17, f"{t:,.0f}", "tick", "middle") for t in x_ticks
    )
    body += _text((left + width - right) / 2, height - 3, "step", "tick", "middle")
    final = average[-1]
    if len(points) > 1:
        body += path(_thinned(points, RAW_BUCKETS), "raw")
        body += path(_thinned(list(zip(steps, average, strict=True)), RAW_BUCKETS), "smooth")
    body += (
        f'<circle cx="{_number(x(steps[-1]))}" cy="{_number(y(final))}" r="3.2" class="fill-main"/>'
    )
    body += _text(
        x(steps[-1]) + 7,
        y(final) + 4,
        f"{final:.2f}" if abs(final) < 100 else decimal(final),
        "value",
    )
    description = (
        f"{what}. {len(points)} steps, from {decimal(average[0])} at step {steps[0]:,.0f} to"
        f" {decimal(final)} at step {steps[-1]:,.0f}, smoothed; lowest single value {decimal(low)}."
    )
    return _frame(identity, width, height, f"{title}: loss by training step", description, body)


def bars(
    identity: str,
    title: str,
    rows: Sequence[Bar],
    style: BarStyle,
    references: Sequence[Reference] = (),
) -> markupsafe.Markup:
    """Horizontal bars from zero to the last value of the axis, names at the left, numbers at the
    bars' ends."""
    width, label_width, axis = style.width, style.label_width, style.axis
    row_height, group_height, bar_height, right = 23.0, 25.0, 13.0, 58.0
    groups = [
        row.group if row.group and (i == 0 or rows[i - 1].group != row.group) else ""
        for i, row in enumerate(rows)
    ]
    top = 4.0
    height = top + len(rows) * row_height + sum(bool(g) for g in groups) * group_height
    span = axis[-1] or 1.0

    def x(value: float) -> float:
        return label_width + (width - label_width - right) * max(0.0, min(value / span, 1.0))

    body = "".join(_line(x(t), top, x(t), height + 3, "grid") for t in axis)
    body += "".join(
        _text(x(t), height + 17, text, "tick", "middle")
        for t, text in zip(axis, style.axis_texts, strict=True)
    )
    boxes = texts = ""
    lines = [x(r.value) for r in references]
    y = top
    for row, group in zip(rows, groups, strict=True):
        if group:
            texts += _text(0, y + 17, group, "group")
            y += group_height
        middle, end = y + row_height / 2, x(row.value)
        tip = f"<title>{escape(row.tip or f'{row.label}: {row.text}')}</title>"
        texts += _text(
            label_width - 8, middle + 4, row.label, "label mono" if style.mono else "label", "end"
        )
        boxes += (
            f'<rect x="{_number(x(0.0))}" y="{_number(middle - bar_height / 2)}" '
            f'width="{max(end - x(0.0), 1.0):.1f}" height="{_number(bar_height)}" rx="1.5" '
            f'class="fill-{row.kind}">{tip}</rect>'
        )
        if row.marker is not None:
            at = x(row.marker)
            diamond = f"M{_number(at)} {_number(middle - 5.5)} l5.5 5.5 l-5.5 5.5 l-5.5 -5.5 z"
            texts += f'<path d="{diamond}" class="marker">{tip}</path>'
            end = max(end, at + 5)
        # A number stands beside a reference line, not on it.
        end = max([end, *(line for line in lines if end <= line < end + 40)])
        texts += _text(end + 6, middle + 4, row.text, "value")
        y += row_height
    crossing = "".join(
        f"<g><title>{escape(r.name)}</title>{_line(x(r.value), top, x(r.value), height + 3, f'ref {r.kind}')}</g>"
        for r in references
    )
    description = f"{title}. " + "; ".join(f"{row.label} {row.text}" for row in rows) + "."
    if references:
        description += " Reference lines: " + "; ".join(r.name for r in references) + "."
    return _frame(identity, width, height + 24, title, description, body + boxes + crossing + texts)


def dots(
    identity: str, title: str, rows: Sequence[Bar], *, width: float, label_width: float
) -> markupsafe.Markup:
    """One dot a row on a logarithmic axis: for values that lie powers of ten apart."""
    row_height, right, top = 26.0, 58.0, 4.0
    values = [row.value for row in rows]
    low = math.floor(math.log10(min(values)) + 1e-9)
    high = max(math.ceil(math.log10(max(values)) - 1e-9), low + 1)
    height = top + len(rows) * row_height

    def x(value: float) -> float:
        return label_width + (width - label_width - right) * (math.log10(value) - low) / (
            high - low
        )

    body = "".join(
        _line(x(10.0**e), top, x(10.0**e), height + 3, "grid") for e in range(low, high + 1)
    )
    body += "".join(
        _text(x(10.0**e), height + 17, f"{10.0**e:,g}", "tick", "middle")
        for e in range(low, high + 1)
    )
    for i, row in enumerate(rows):
        middle = top + row_height * (i + 0.5)
        body += _line(label_width, middle, width - right, middle, "thread")
        body += f"<g><title>{escape(f'{row.label}: {row.text}')}</title>"
        body += _text(label_width - 8, middle + 4, row.label, "label", "end")
        body += (
            f'<circle cx="{_number(x(row.value))}" cy="{_number(middle)}" r="6"'
            f' class="fill-{row.kind}"/>'
        )
        body += _text(width - right + 14, middle + 4, row.text, "value") + "</g>"
    description = (
        f"{title}, logarithmic axis. " + "; ".join(f"{row.label} {row.text}" for row in rows) + "."
    )
    return _frame(identity, width, height + 24, title, description, body)
