"""A small line chart as SVG text: enough for a page of results, without a plotting library."""

from collections.abc import Mapping, Sequence
from itertools import cycle

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 300, 62, 46, 34, 150
COLOURS = ("#1f6fb2", "#c2571a", "#3a8f3a", "#8453a6", "#666666")


def line_chart(title: str, x_label: str, y_label: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Lines through points (x, y), both axes from zero, a mark at each point and the name at each line's end."""
    points = [point for line in series.values() for point in line]
    x_max, y_max = (_nice(max(point[axis] for point in points)) for axis in (0, 1))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            round(LEFT + x / x_max * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - y / y_max * (HEIGHT - BOTTOM - TOP), 1),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{title}</text>',
    ]
    for tick in range(5):
        (x, base), (left, y) = place(x_max * tick / 4, 0), place(0, y_max * tick / 4)
        right = place(x_max, 0)[0]
        parts += [
            f'<line x1="{left}" y1="{y}" x2="{right}" y2="{y}" stroke="#ddd"/>',
            f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{y_max * tick / 4:g}</text>',
            f'<text x="{x}" y="{base + 16}" text-anchor="middle">{x_max * tick / 4:g}</text>',
        ]
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{x_label}</text>')
    parts.append(f'<text transform="translate(14 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{y_label}</text>')
    for (name, line), colour in zip(series.items(), cycle(COLOURS), strict=False):
        places = [place(*point) for point in line]
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in places]
        parts.append(f'<text x="{places[-1][0] + 8}" y="{places[-1][1] + 4}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _nice(largest: float) -> float:
    """The least of 1, 2, 4, 5, 8 times a power of ten that is not below."""
    power = 10.0 ** (len(f"{int(largest)}") - 1) if largest >= 1 else 0.1
    while power > largest:
        power /= 10
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if step * power >= largest)
