"""The precision report as one HTML file: no script, no link, nothing loaded, all text escaped.

Its content security policy allows its own style sheet (by hash) and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from tensorguard.moai import wiring
from tensorguard.moai.compile.build import Compiled
from tensorguard.moai.compile.fit import Fit
from tensorguard.moai.compile.network import Activation
from tensorguard.moai.compile.svg import Curve, bars, chart
from tensorguard.moai.graph import Graph, Polynomial
from tensorguard.moai.manifest import PrecisionReport
from tensorguard.moai.pack import VerifiedPack
from tensorguard.moai.parameters import CkksParameters
from tensorguard.moai.plan import Plan

Floats = npt.NDArray[np.float64]
MAX_ROWS = 2048  # of the calibration data; more do not change a histogram
UNITS = 6  # curves in a plot
POINTS = 120
BINS = 60
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;"
    "color:#1b1f24;background:#fff}h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}"
    "table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.25rem .6rem;"
    "border-bottom:1px solid #d6dae0;font-variant-numeric:tabular-nums}svg{width:100%;height:auto}"
    "figure{margin:1rem 0}figcaption{color:#57606a;font-size:.9rem}"
)
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
_NO_FITS: Mapping[str, Fit] = {}


@dataclass(frozen=True, eq=False)
class _Subject:
    """What a report is about."""

    title: str
    graph: Graph
    plan: Plan
    parameters: CkksParameters
    precision: PrecisionReport
    fits: Mapping[str, Fit]


def report_compiled(compiled: Compiled, data: Floats, *, title: str) -> str:
    """Return the HTML report of a compiled network; `data` are its calibration rows."""
    subject = _Subject(
        title,
        compiled.graph,
        compiled.plan,
        compiled.parameters,
        compiled.precision,
        compiled.fits,
    )
    return _page(subject, data)


def report_pack(pack: VerifiedPack, precision: PrecisionReport, data: Floats) -> str:
    """Return the HTML report of a finished pack on rows `data`.

    It has no original activations any more: polynomials are drawn on [-1, 1], without them.
    """
    title = f"{pack.manifest.name} {pack.manifest.version}"
    spec = pack.spec
    return _page(_Subject(title, spec.graph, spec.plan, spec.parameters, precision, _NO_FITS), data)


def key_bytes(parameters: CkksParameters, plan: Plan) -> tuple[int, int]:
    """Return the sizes in memory of one key-switching key, and of all that the plan needs."""
    levels = parameters.levels
    one = levels * 2 * (levels + 1) * parameters.degree * 8
    return one, one * (len(plan.rotations) + int(plan.relinearisation))


def _page(subject: _Subject, data: Floats) -> str:
    rows = data[:: -(-len(data) // MAX_ROWS)]
    title = escape(subject.title)
    policy = f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'"
    sections = (_summary(subject), _parameters(subject), _layers(subject), *_plots(subject, rows))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{title}: precision</title><style>{STYLE}</style></head>\n<body>"
        f"<h1>{title}: precision report</h1>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _summary(subject: _Subject) -> str:
    report = subject.precision
    meaning = subject.graph.output.meaning
    unit = "of each output's range" if meaning == "regression" else "in units of probability"
    rows = (
        ("error budget", f"{report.error_budget:.3g}"),
        ("total rms", f"{report.total_rms:.3g}"),
        ("approximation, rms", f"{report.approximation_rms:.3g}"),
        ("approximation, largest", f"{report.approximation_max:.3g}"),
        ("encryption, rms", f"{report.ckks_rms:.3g}"),
        ("encryption, rms in the output's own units", f"{report.ckks_absolute_rms:.3g}"),
        ("headroom", f"{report.headroom_bits:.1f} bits"),
        ("samples", str(report.samples)),
    )
    return f"<h2>Outputs ({escape(meaning)}), errors {escape(unit)}</h2>" + _table(
        ("predicted", "value"), rows
    )


def _parameters(subject: _Subject) -> str:
    parameters, plan = subject.parameters, subject.plan
    chain = (*parameters.primes, parameters.special)
    one, every = key_bytes(parameters, plan)
    rows = (
        ("ring degree N", str(parameters.degree)),
        ("log2(QP)", str(math.prod(chain).bit_length())),
        ("primes, in chain order", ", ".join(f"{p.bit_length()} bits" for p in parameters.primes)),
        ("special prime", f"{parameters.special.bit_length()} bits"),
        ("scale", f"2^{parameters.scale_bits}"),
        ("levels used", str(plan.depth)),
        ("rotation keys", str(len(plan.rotations))),
        ("relinearisation key", "yes" if plan.relinearisation else "no"),
        ("one key", _size(one)),
        ("all evaluation keys", _size(every)),
        ("fresh ciphertext", _size(2 * parameters.levels * parameters.degree * 8)),
    )
    note = "<p>Sizes are those in memory; seeded keys and ciphertexts travel in half.</p>"
    return "<h2>CKKS parameters and keys</h2>" + _table(("parameter", "value"), rows) + note


def _size(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"


def _layers(subject: _Subject) -> str:
    layers = subject.precision.layers
    rows = [
        (
            layer.name,
            layer.kind,
            str(layer.degree),
            str(step.level),
            f"[{layer.low:.3g}, {layer.high:.3g}]",
            f"{layer.approximation_rms:.3g}",
            f"{layer.approximation_max:.3g}",
            f"{layer.ckks_rms:.3g}",
        )
        for layer, step in zip(layers, subject.plan.layers, strict=True)
    ]
    head = ("layer", "kind", "degree", "level", "range", "error rms", "error max", "CKKS rms")
    names = [layer.name for layer in layers]
    errors = [layer.approximation_rms for layer in layers]
    noise = [layer.ckks_rms for layer in layers]
    return (
        "<h2>Layers</h2>"
        + _table(head, rows)
        + _figure(bars(names, errors), "Approximation error (rms) of each layer, log scale")
        + _figure(bars(names, noise), "Predicted CKKS noise (rms) of each layer, log scale")
    )


def _figure(drawing: str, caption: str) -> str:
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def _plots(subject: _Subject, rows: Floats) -> list[str]:
    graph = subject.graph
    values = graph.standardise(rows)
    given = graph.trace(values)
    result = []
    for layer, sources in zip(graph.layers, graph.sources, strict=True):
        if isinstance(layer, Polynomial):
            t = values if sources[0] == wiring.INPUT else given[sources[0]]
            result.append(_activation(layer, subject.fits.get(layer.name), t))
    return result


def _activation(layer: Polynomial, fitted: Fit | None, t: Floats) -> str:
    width = t.shape[1]
    centre = np.zeros(width) if fitted is None else fitted.centre
    radius = np.ones(width) if fitted is None else fitted.radius
    gain = np.ones(width) if fitted is None else fitted.gain
    counts, edges = np.histogram(centre + radius * t, bins=BINS)
    low, high = t.min(axis=0), t.max(axis=0)
    grid = low + np.linspace(0, 1, POINTS)[:, None] * np.where(high > low, high - low, 1e-6)
    x, y = centre + radius * grid, gain * layer.apply(grid)
    known = fitted is not None and layer.stands_for != "polynomial"
    truth = Activation(layer.stands_for)(x) if known else None
    order = np.arange(width) if truth is None else np.argsort(((y - truth) ** 2).mean(axis=0))
    chosen = np.unique(np.linspace(0, width - 1, min(UNITS, width)).astype(int))
    curves = [
        Curve(x[:, u], y[:, u], "worst" if truth is not None and u == order[-1] else "unit")
        for u in order[chosen]
    ]
    if truth is not None:
        line = np.linspace(x.min(), x.max(), 2 * POINTS)
        curves.append(Curve(line, Activation(layer.stands_for)(line), "truth"))
    drawn = chart(curves, counts.astype(np.float64), edges)
    where = "the calibrated inputs" if fitted is not None else "the normalised inputs"
    said = f"Polynomials of {len(chosen)} of {width} units over the histogram of {where}"
    said += "; dark: the activation itself; red: the unit that it fits worst" if known else ""
    parts = [f"<h2>{escape(layer.name)}: {escape(layer.stands_for)}, degree {layer.degree}</h2>"]
    parts.append(_figure(drawn, said))
    if truth is not None:
        errors = [
            Curve(x[:, u], (y - truth)[:, u], "worst" if u == order[-1] else "unit")
            for u in order[chosen]
        ]
        parts.append(_figure(chart(errors), "Polynomial minus activation"))
    return "".join(parts)
