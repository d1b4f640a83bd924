"""One page of HTML about runs: numbers, pictures, who waited, samples, what ran."""

import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from asympo_jax.report import captions, figures
from asympo_jax.report.details import Details
from asympo_jax.report.markup import document, picture, table, text
from asympo_jax.report.rollouts import Sample
from asympo_jax.report.table import Row, as_words
from asympo_jax.report.timeline_figure import draw_timeline

_BREAKS = "\n\t"
_ALTERNATIVES = {
    "accuracy": "Accuracy on held-out prompts over learner updates",
    "reward": "Mean reward of the responses trained on over learner updates",
    "nll": "Negative log-probability of responses with positive and negative advantage",
    "balance": "What positive and negative responses put into the loss",
    "lag": "Histogram of lags",
    "speed": "Tokens trained on in a second, reached and ideal",
}


def render(rows: Sequence[Row], details: Sequence[Details], trace: str | None) -> str:
    """The page.

    Args:
        rows: the numbers of each run.
        details: what else there is of each, in the same order.
        trace: file name of the trace beside the page; None where there is none.
    """
    runs = [one.run for one in details]
    title = captions.title(runs)
    pictures = figures.draw_each(runs)
    parts = [
        f"<h1>{text(title)}</h1><p class=faint>{text(captions.subtitle(runs))}</p>",
        _numbers(rows),
        "<h2>What happened</h2><div class=pictures>",
        *(picture(pictures[name], words) for name, words in _ALTERNATIVES.items()),
        "</div>",
        *_who_waited(details, trace),
        *_answers(details),
        "<h2>What ran</h2>",
        *_differences(details),
        *(part for one in details for part in _what_ran(one, len(details) == 1)),
    ]
    return document(title, parts)


def _numbers(rows: Sequence[Row]) -> str:
    """The runs side by side, a column each."""
    columns = [as_words(row) for row in rows]
    names = columns[0]
    return table([row.run for row in rows], [(name, *(c[name] for c in columns)) for name in names])


def _who_waited(details: Sequence[Details], trace: str | None) -> Iterable[str]:
    """Sentences on the bottlenecks, pictures of some updates, and where the trace is."""
    yield "<h2>Who waited for whom</h2>"
    for one in details:
        if len(details) > 1:
            yield f"<h3>{text(one.run.name)}</h3>"
        yield f"<p>{text(one.bottleneck() or 'The metrics do not tell.')}</p>"
        if spans := one.newest_spans:
            content = io.BytesIO()
            draw_timeline(spans, content)
            yield picture(content.getvalue(), "Timeline of learner, publisher and samplers")
    if trace is None:
        yield "<p class=faint>No times were written down, so there is no timeline.</p>"
    else:
        yield (
            f'<p class=faint>The whole timeline is in <a href="{text(trace)}">{text(trace)}</a> '
            "beside this page, for chrome://tracing or ui.perfetto.dev.</p>"
        )


def _answers(details: Sequence[Details]) -> Iterable[str]:
    """Samples of the first and of the last update that has any."""
    yield "<h2>Sampled answers, before and after</h2>"
    for one in details:
        if len(details) > 1:
            yield f"<h3>{text(one.run.name)}</h3>"
        if not one.samples:
            yield "<p class=faint>No samples were written (log.rollouts_every_updates).</p>"
        for samples in one.samples:
            first = samples[0]
            snapshot = (
                "the initial parameters" if not first.version else f"snapshot {first.version}"
            )
            mean = dict(zip(*one.run.series("reward/mean"), strict=True)).get(first.update)
            all_of_it = "" if mean is None else f" (mean reward of all its responses {mean:.2f})"
            yield (
                f"<p>Trained on by update {first.update}{all_of_it}, drawn by {snapshot}:</p>"
                "<div class=samples>"
            )
            yield from map(_sample, samples)
            yield "</div>"


def _sample(sample: Sample) -> str:
    """A prompt, an answer, and what it got."""
    kind = "high" if sample.reward > 0 else "low"
    reward = f"{sample.reward:.3g}" if math.isfinite(sample.reward) else "not known"
    stop = sample.stop.replace("_", " ")
    return (
        f"<div class=sample><p><span class={kind}>reward {reward}</span> <span class=faint>"
        f"{sample.tokens} tokens, {text(stop)}, lag {sample.lag}</span></p>"
        f"<pre class=prompt>{text(sample.prompt, _BREAKS)}</pre>"
        f"<pre>{text(sample.response, _BREAKS)}</pre></div>"
    )


def _differences(details: Sequence[Details]) -> Iterable[str]:
    """The fields of the configs in which the runs differ."""
    fields = list(dict.fromkeys(field for one in details for field in one.config))
    values_of = {field: [one.config.get(field) for one in details] for field in fields}
    differing = {
        field: values
        for field, values in values_of.items()
        if values.count(values[0]) < len(values)
    }
    if not differing:
        return
    yield table(
        [one.run.name for one in details],
        [(field, *map(_plain, values)) for field, values in differing.items()],
    )


def _what_ran(one: Details, is_open: bool) -> Iterable[str]:
    """The newest attempt's machine, and the whole config."""
    yield f"<details{' open' if is_open else ''}><summary>{text(one.run.name)}</summary>"
    if one.attempts:
        pairs = _machine(one.attempts[-1])
        if len(one.attempts) > 1:
            pairs.append(("attempts", f"{len(one.attempts)}, of which this is the newest"))
        cells = "".join(
            f"<tr><th scope=row>{text(name)}</th><td class=text>{text(value)}</td></tr>"
            for name, value in pairs
        )
        yield f"<table><tbody>{cells}</tbody></table>"
    else:
        yield "<p class=faint>It did not write down what it ran on.</p>"
    fields = "\n".join(f"{field} = {_plain(value)}" for field, value in one.config.items())
    yield (
        "<details><summary>all fields of the config</summary>"
        f"<pre>{text(fields, _BREAKS)}</pre></details></details>"
    )


def _machine(attempt: Any) -> list[tuple[str, str]]:
    """What an attempt ran on, as words."""

    def words(value: Any) -> str:
        if isinstance(value, list):
            return " ".join(map(str, value))
        if isinstance(value, dict):
            return ", ".join(f"{name} {one}" for name, one in value.items() if one is not None)
        return "–" if value is None else str(value)

    devices = attempt.get("devices")
    kinds = list(map(str, devices)) if isinstance(devices, list) else []
    counts = {kind: kinds.count(kind) for kind in kinds}
    memory = attempt.get("memory_bytes")
    gib = f"{memory / 2**30:.0f} GiB" if isinstance(memory, int) and memory < 2**63 else "–"
    return [
        ("command", words(attempt.get("command"))),
        ("started", words(attempt.get("started"))),
        ("commit", words(attempt.get("commit"))),
        ("versions", f"Python {words(attempt.get('python'))}, {words(attempt.get('versions'))}"),
        ("learner's devices", ", ".join(f"{n} × {kind}" for kind, n in counts.items()) or "–"),
        ("processor", f"{words(attempt.get('processor'))}, {words(attempt.get('cores'))} cores"),
        ("memory", gib),
        ("system", words(attempt.get("system"))),
    ]


def _plain(value: Any) -> str:
    """A value of a config."""
    return "unset" if value is None else str(value)
