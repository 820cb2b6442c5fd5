"""The report as a page that needs nothing else (bench.html), and as docs/proof.md with its pictures."""

import json
from html import escape
from pathlib import Path
from textwrap import fill

from dev.bench import charts
from dev.bench.report import HEAD, Report, Row, cells

COLOURS = {
    "ink": "#1c1e22", "soft": "#5c6169", "line": "#d8d5cd", "good": "#17713f", "bad": "#b0261d", "run": "#2c56cc",
    "rest": "#a9adb5", "page": "#f4f3f0", "band": "#17713f",
}  # fmt: skip
STYLE = """
:root { color-scheme: light dark; %s font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--page) }
body { max-width: 62rem; margin: 0 auto; padding: 2rem 1rem }
h1, h2, h3 { font-weight: 600; line-height: 1.2 } h2 { margin-top: 3rem } h3 { margin: 2.5rem 0 0.5rem }
p, dt { color: var(--soft) } dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.1rem 1rem }
dd { margin: 0 } svg { width: 100%%; height: auto }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: 0.3rem 0.7rem 0.3rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top }
p.missed, tr.missed td:last-child { color: var(--bad) } tr.missed { font-weight: 600 }
pre { white-space: pre-wrap; font: 12px/1.4 ui-monospace, monospace; color: var(--soft) }
"""
CAUSES = Path(__file__).parent / "causes.md"  # why rows miss their targets, written by hand
PROOF = """# Proof: what an order costs

Measured by `make bench ARGS=--proof` on {date}, with {machine}, at {versions}. It took {minutes:.0f} minutes.

**{summary}.** Each ratio is the median of three, measured in turns; *min to max* is their spread.
[Scale](scale.md) says what follows from the costs.

![Each ratio as a multiple of its target](pictures/bench-targets.svg)

{table}

![What was measured, and against what](pictures/bench-values.svg)

{causes}
## How each row is measured

The rows are in `dev/bench/rows`, a file for each subject. `make bench ARGS="--rows floor"` measures one.

{how}
"""


def page(report: Report) -> str:
    colours = "".join(f"--{name}:light-dark({colour},{charts.DARK[name]});" for name, colour in COLOURS.items())
    facts = {**report.machine, **report.versions, "took": f"{report.minutes:.0f} minutes"}
    described = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    quick = "<p>A quick run: it shows that the benchmark works, and no figures.</p>" if report.quick else ""
    head = "".join(f"<th>{escape(name)}</th>" for name in HEAD[1:])
    body = "".join(
        f'<tr class="{cells(line)[-1]}">' + "".join(f"<td>{escape(cell)}</td>" for cell in cells(line))
        for line in report.comparisons
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Benchmark of {escape(report.date)}</title>
<style>{STYLE % colours}{charts.STYLE}</style>
<h1>{escape(report.summary)}</h1>
<p>Measured on {escape(report.date)}. Each ratio is the median of three, measured in turns; a line is their spread.</p>
{quick}
<dl>{described}</dl>
<h2>Against the targets</h2>
{charts.targets(report.comparisons)}
<h2>All figures</h2>
<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
<h2>Row by row</h2>
{"".join(map(_section, report.rows))}
</html>
"""


def _section(row: Row) -> str:
    notes = "".join(f"<p>{escape(note)}</p>" for note in dict.fromkeys(line.note for line in row.comparisons) if note)
    details = {name: value for line in row.comparisons for name, value in line.details.items()}
    lines = "\n".join(f"{name}: {json.dumps(value)}" for name, value in details.items())
    return (
        f"<h3>{escape(row.name)}</h3><p>{escape(row.how)}</p>{notes}"
        + (f'<p class="missed">{escape(row.error)}</p>' if row.error else charts.values(row.comparisons))
        + (f"<pre>{escape(lines)}</pre>" if lines else "")
    )


def write_proof(report: Report, docs: Path) -> None:
    """Write docs/proof.md and its pictures."""
    pictures = docs / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    (pictures / "bench-targets.svg").write_text(charts.standalone(charts.targets(report.comparisons)))
    (pictures / "bench-values.svg").write_text(charts.standalone(charts.values(report.comparisons)))
    rows = [HEAD[1:], ["---"] * len(HEAD[1:]), *map(cells, report.comparisons)]
    machine = report.machine
    text = PROOF.format(
        date=report.date,
        machine=f"{machine['cores']} cores of {machine['processor']}, {machine.get('memory', '')}, {machine['system']}",
        versions=", ".join(f"{name} {number}" for name, number in report.versions.items()),
        minutes=report.minutes,
        summary=report.summary,
        causes=CAUSES.read_text(),
        table="\n".join(f"| {' | '.join(row)} |" for row in rows),
        how="\n".join(f"- **{row.name}**: {row.how}" for row in report.rows),
    )
    (docs / "proof.md").write_text("\n".join(map(_wrapped, text.splitlines())) + "\n")


def _wrapped(line: str) -> str:
    return line if line.startswith("|") else fill(line, 120, subsequent_indent="  " * line.startswith("- "))
