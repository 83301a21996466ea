"""A run's report as one HTML file that needs nothing beside it."""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


# One colour per curve, readable on white and for the colour-blind (Okabe and Ito's palette).
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } th, td { padding: .3rem .9rem .3rem 0; text-align: left; }
th { border-bottom: 2px solid #d0d7de; font-weight: 600; } td { border-bottom: 1px solid #eaeef2; }
.charts { display: flex; flex-wrap: wrap; gap: 2rem; }
.row { display: flex; align-items: center; gap: .5rem; margin: .5rem 0; } .row b { width: 17rem; font-weight: 500; }
.row img { width: 80px; height: 80px; border-radius: 4px; } .row img.right { outline: 3px solid #009e73; }
svg text { font: 12px system-ui, sans-serif; fill: #57606a; }
"""


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class GalleryRow:
    """A query and the pictures it found, best first."""

    query: str
    pictures: Sequence[bytes]
    """JPEG files."""
    right: Sequence[bool]
    """Whether each picture is one that the query describes."""


def render_report(
    title: str,
    results: Mapping[str, str],
    stages: Sequence[Mapping[str, str]],
    charts: Mapping[str, Sequence[Curve]],
    gallery: Sequence[GalleryRow],
) -> str:
    """The report as HTML: results, what each stage cost, curves, retrieved pictures."""
    escape = html.escape
    facts = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in results.items())
    drawn = "".join(f"<div><h2>{escape(name)}</h2>{_chart(curves)}</div>" for name, curves in charts.items())
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1><table>{facts}</table>"
        f"<h2>Tokens and compute</h2>{_table(stages)}<div class='charts'>{drawn}</div>"
        "<h2>Retrieved pictures</h2><p>For each text the nearest pictures of the zero-shot set, none seen in training; "
        f"a green frame marks a right one.</p>{''.join(_gallery_row(row) for row in gallery)}</body></html>\n"
    )


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(value)}</td>" for value in row.values()) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _gallery_row(row: GalleryRow) -> str:
    pictures = "".join(
        f"<img {'class=right ' if right else ''}alt='' src='data:image/jpeg;base64,{base64.b64encode(data).decode()}'>"
        for data, right in zip(row.pictures, row.right, strict=True)
    )
    return f"<div class='row'><b>{html.escape(row.query)}</b>{pictures}</div>"


def _chart(curves: Sequence[Curve], width: int = 440, height: int = 240) -> str:
    """Lines over a common scale, as SVG, with the two ends of each axis labelled."""
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    left, right, low, high = min(xs), max(xs), min(0.0, *ys), max(ys)
    pad = 40

    def place(x: float, y: float) -> str:
        across = pad + (x - left) / max(right - left, 1e-9) * (width - 2 * pad)
        up = height - pad - (y - low) / max(high - low, 1e-9) * (height - 2 * pad)
        return f"{across:.1f},{up:.1f}"

    lines = ""
    for number, (curve, color) in enumerate(zip(curves, _COLORS, strict=False)):
        points = " ".join(place(x, y) for x, y in curve.points)
        lines += (
            f"<polyline fill='none' stroke='{color}' stroke-width='2' points='{points}'/>"
            f"<text x='{pad + 12}' y='{16 + 16 * number}' style='fill:{color}'>{html.escape(curve.name)}</text>"
        )
    axes = (
        f"<path d='M{pad} {pad}V{height - pad}H{width - pad}' fill='none' stroke='#d0d7de'/>"
        f"<text x='4' y='{pad + 4}'>{high:.3g}</text><text x='4' y='{height - pad + 4}'>{low:.3g}</text>"
        f"<text x='{pad}' y='{height - pad + 18}'>{left:,.0f}</text>"
        f"<text x='{width - pad}' y='{height - pad + 18}' text-anchor='end'>{right:,.0f} samples</text>"
    )
    return f"<svg role='img' width='{width + 60}' height='{height}'>{axes}{lines}</svg>"
