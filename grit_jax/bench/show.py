"""The measurements of `grit bench rag` as Markdown tables, and as a plot over lengths."""

from __future__ import annotations

from pathlib import Path

import jax

from grit_jax.bench.lower_bound import kv_bytes
from grit_jax.bench.rag import MEASURED, SHAPES, RagBench, RagTiming
from grit_jax.inference.model import GritLM
from grit_jax.models.parameters import num_parameters
from grit_jax.runtime.files import write_file, write_json, write_text
from grit_jax.runtime.progress import say

HEAD = (
    "layout",
    "first token",
    "total",
    "least",
    "most",
    "search",
    "load",
    "prefill",
    "decode",
    "floor",
    "stored",
)


def markdown(bench: RagBench, model: GritLM) -> str:
    """The conditions of the measurement, and for each sample a table and its findings."""
    parts = [_conditions(bench, model)]
    for shape in SHAPES:
        rows = {timing.mode: timing for timing in bench.table if timing.shape == shape}
        timing = rows["doc"]
        parts.append(
            f"**{shape}**: a question of {_count(timing.query_tokens)}, a document of"
            f" {_count(timing.doc_tokens)}, {timing.new_tokens} new tokens;"
            f" seconds\n\n{_table([rows[mode] for mode in MEASURED])}\n\n{_findings(rows)}"
        )
    return "\n\n".join(parts) + "\n"


def write(bench: RagBench, model: GritLM, folder: Path) -> None:
    """`table.md`, `rag.json` (every timing) and, where matplotlib is installed, `latency.png`."""
    write_text(folder / "table.md", markdown(bench, model))
    rows = [vars(timing) for timing in bench.curve or bench.table]
    write_json(folder / "rag.json", rows)
    try:
        plot(bench.curve, folder / "latency.png")
    except ImportError:
        say(
            f"{folder / 'latency.png'} is not drawn, matplotlib is missing: pip install"
            " 'grit-jax[plot]'"
        )


def plot(curve: list[RagTiming], path: Path) -> None:
    """Total seconds over the length of the document (A) and of the question (B).

    Raises:
      ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, shape, side in zip(
        figure.subplots(1, 2), SHAPES, ("document", "question"), strict=True
    ):
        for mode in MEASURED:
            points = [timing for timing in curve if (timing.shape, timing.mode) == (shape, mode)]
            lengths = [max(timing.query_tokens, timing.doc_tokens) for timing in points]
            style = (
                {"color": "black", "linestyle": ":", "linewidth": 3}
                if mode == "auto"
                else {"marker": "o"}
            )
            (line,) = axes.plot(lengths, [timing.total_s for timing in points], label=mode, **style)
            span = ([timing.least_s for timing in points], [timing.most_s for timing in points])
            axes.fill_between(lengths, *span, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set(
            xscale="log",
            yscale="log",
            xlabel=f"tokens of the {side}",
            ylabel="seconds",
            title=shape,
        )
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    axes.legend()
    with write_file(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=120)


def _table(rows: list[RagTiming]) -> str:
    lines = [HEAD]
    for row in rows:
        name = f"{row.mode} ({row.used})" if row.used != row.mode else row.mode
        seconds = (
            row.ttft_s,
            row.total_s,
            row.least_s,
            row.most_s,
            row.search_s,
            row.load_s,
            row.prefill_s,
            row.decode_s,
            row.floor_s,
        )
        lines.append((name, *(f"{value:.3f}" for value in seconds), _size(row.storage_bytes)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    lines.insert(1, ("-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])))
    pad = lambda i, text: text.rjust(widths[i]) if i else text.ljust(widths[i])
    return "\n".join(f"| {' | '.join(pad(*cell) for cell in enumerate(line))} |" for line in lines)


def _findings(rows: dict[str, RagTiming]) -> str:
    """The ratios of interest: a cached document to one that is read and to none, and the router to
    the best layout."""
    doc, none = rows["doc"], rows["none"]
    plain = min(rows["query-then-doc"].total_s, rows["doc-then-query"].total_s)
    best = min(
        (row for mode, row in rows.items() if mode not in ("auto", "none")),
        key=lambda row: row.total_s,
    )
    over = rows["auto"].total_s / best.total_s - 1
    return (
        f"doc takes {doc.total_s / none.total_s:.2f} times as long as an answer without a document,"
        f" and is {plain / doc.total_s:.1f} times as fast as reading it; auto took"
        f" {rows['auto'].used} and {100 * over:+.0f}% of the time of the best ({best.mode})."
    )


def _conditions(bench: RagBench, model: GritLM) -> str:
    device, row, c = jax.devices()[0], bench.table[0], model.config
    tokens = max(row.query_tokens, row.doc_tokens)
    devices = "" if model.mesh is None else f"{model.mesh.size} x "
    cold = (
        "The document's record comes from the disk each time."
        if all(timing.cold for timing in bench.table)
        else (
            "This system could not be made to forget the store's files: records come from its page"
            " cache."
        )
    )
    return (
        f"{num_parameters(c) / 1e6:.0f}M parameters, {model.dtype}, records {row.kv};"
        f" {devices}{device.device_kind}, jax {jax.__version__}. Medians of {row.repeats} rounds"
        f" over all layouts, the quickest and the slowest beside them, nothing compiled in between."
        f" {cold}"
        f" The floor is bytes: a record at {bench.rates.store / 1e9:.2f} GB/s once, and for each"
        f" token {bench.weight_bytes / 1e6:.1f} MB of weights and {kv_bytes(c, tokens) / 1e6:.1f}"
        f" MB of keys and values ({tokens} tokens) at {bench.rates.memory / 1e9:.2f} GB/s."
    )


def _count(tokens: int) -> str:
    return f"{tokens:,} token" + "s" * (tokens != 1)


def _size(count: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"
