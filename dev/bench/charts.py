"""The charts, as SVG without scripts: in the page of the report, and as pictures of docs/proof.md."""

import math
from collections.abc import Iterable
from html import escape
from statistics import median

from dev.bench.comparison import Comparison
from dev.bench.report import amount, cells

WIDTH = 960
LABELS = 390  # width of the titles
LINE = 26  # height
DECADES = 1.3  # of the axis, to each side of the target
# Nothing is told by colour alone: a missed target is hollow.
STYLE = """
.chart { font: 13px system-ui, sans-serif }
.chart text { fill: var(--ink, #1c1e22) }
.chart .soft { fill: var(--soft, #5c6169) }
.chart .line { stroke: var(--line, #d8d5cd); stroke-width: 1 }
.chart .target { stroke: var(--ink, #1c1e22); stroke-width: 1.5 }
.chart .band { fill: var(--band, #17713f); opacity: 0.08 }
.chart .met { fill: var(--good, #17713f); stroke: var(--good, #17713f) }
.chart .missed { fill: var(--page, #fff); stroke: var(--bad, #b0261d); stroke-width: 2 }
.chart .spread.met, .chart .spread.missed { stroke-width: 2; fill: none }
.chart .measured { fill: var(--run, #2c56cc) }
.chart .against { fill: var(--rest, #a9adb5) }
.chart .whisker { stroke: var(--ink, #1c1e22); stroke-width: 1.2 }
"""
DARK = {
    "ink": "#e7e8ea", "soft": "#a2a8b1", "line": "#2c3037", "good": "#62d295", "bad": "#ff978c", "run": "#91aeff",
    "rest": "#6c727c", "page": "#131519", "band": "#62d295",
}  # fmt: skip


def standalone(svg: str) -> str:
    """A chart as a file, which follows the reader's colour scheme by itself."""
    dark = "".join(f"--{name}:{colour};" for name, colour in DARK.items())
    style = f"<style>{STYLE}@media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}</style>"
    return svg.replace(">", f">{style}", 1) + "\n"


def targets(comparisons: Iterable[Comparison]) -> str:
    """Each ratio on one axis, as times its target: left of the line it is better than the target.

    A target of none at all has no place on this axis.
    """
    lines = [line for line in comparisons if line.target and line.ratio and math.isfinite(line.ratio)]
    top, bottom = 30, 30 + LINE * len(lines)
    left, right = LABELS, WIDTH - 150

    def x(distance: float) -> float:
        position = max(-DECADES, min(DECADES, math.log10(max(distance, 1e-9))))
        return round(left + (right - left) * (position + DECADES) / (2 * DECADES), 1)

    parts = [f'<rect class="band" x="{left}" y="{top}" width="{x(1) - left}" height="{bottom - top}"/>']
    for times in (0.1, 0.2, 0.5, 1, 2, 5, 10):
        kind, text = ("target", "target") if times == 1 else ("line", f"{times:g}")
        parts.append(f'<line class="{kind}" x1="{x(times)}" x2="{x(times)}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text class="soft" x="{x(times)}" y="{top - 10}" text-anchor="middle">{text}</text>')
    for number, line in enumerate(lines):
        y, kind = top + LINE * number + LINE / 2, "met" if line.is_met else "missed"
        distances = [line.target / ratio if line.at_least else ratio / line.target for ratio in line.ratios if ratio]
        low, high, middle = x(min(distances)), x(max(distances)), x(median(distances))
        _, _, _, ratio, _, target, _ = cells(line)
        parts += [
            f'<text x="0" y="{y + 4}">{escape(line.title)}</text>',
            f'<line class="spread {kind}" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>',
            f'<circle class="{kind}" cx="{middle}" cy="{y}" r="5"/>',
            f'<text x="{WIDTH - 60}" y="{y + 4}" text-anchor="end">{ratio}</text>',
            f'<text class="soft" x="{WIDTH}" y="{y + 4}" text-anchor="end">{escape(target)}</text>',
        ]
    return _svg(bottom + 6, parts, "Each ratio as a multiple of its target; left of the line it is better")


def values(comparisons: Iterable[Comparison]) -> str:
    """For each comparison two bars: the medians of what is measured, and of what it is measured against."""
    lines, left, right = list(comparisons), LABELS, WIDTH - 150
    parts, height = [], 46
    for number, line in enumerate(lines):
        y = height * number
        longest = max(*line.measured, *line.against) or 1
        parts.append(f'<text x="0" y="{y + 18}">{escape(line.title)}</text>')
        for row, (kind, numbers, name) in enumerate(
            (("measured", line.measured, line.names[0]), ("against", line.against, line.names[1]))
        ):
            middle, bar = median(numbers), y + 5 + 17 * row
            low, end, high = (
                round(left + (right - left) * value / longest, 1) for value in (min(numbers), middle, max(numbers))
            )
            parts += [
                f'<text class="soft" x="{left - 8}" y="{bar + 12}" text-anchor="end">{escape(name)}</text>',
                f'<rect class="{kind}" x="{left}" y="{bar}" width="{round(end - left, 1)}" height="14" rx="2"/>',
                f'<line class="whisker" x1="{low}" x2="{high}" y1="{bar + 7}" y2="{bar + 7}"/>' if high > low else "",
                f'<text x="{max(end, high) + 6}" y="{bar + 12}">{amount(middle)} {escape(line.unit)}</text>',
            ]
    return _svg(height * len(lines), parts, "What was measured, and against what")


def _svg(height: float, parts: Iterable[str], description: str) -> str:
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(description)}">{"".join(parts)}</svg>'
    )
