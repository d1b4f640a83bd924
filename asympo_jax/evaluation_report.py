"""What an evaluation found: the estimates, every response, how fast, and the table of it all."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asympo_jax import workdirs
from asympo_jax.sampling import Answers, estimates
from asympo_jax.types import StopReason


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Graded responses to some prompts.

    Attributes:
        answers: the responses.
        correct_PK: which are right.
        votes: P times k final answers, None where a response has none; None where the task names
            no answers.
        generation_s: seconds that drawing them took.
    """

    answers: Answers
    correct_PK: np.ndarray
    votes: Sequence[Sequence[str | None]] | None
    generation_s: float


def findings(greedy: Sequence[Chunk], sampled: Sequence[Chunk]) -> dict[str, Any]:
    """What the responses come to, as plain data; NaN is None.

    Args:
        greedy: one response to each prompt.
        sampled: k responses to each; none where only greedy ones were asked for.
    """
    value_P_of = {"greedy": estimates.avg(_correct_PK(greedy))}
    metric_of = {"greedy": "eval/accuracy_greedy"}
    if sampled:
        correct_PK = _correct_PK(sampled)
        k = correct_PK.shape[1]
        value_P_of[f"avg@{k}"] = estimates.avg(correct_PK)
        metric_of[f"avg@{k}"] = "eval/accuracy"
        for size in estimates.sizes(k):
            value_P_of[f"pass@{size}"] = estimates.pass_at(correct_PK, size)
        votes = _votes(sampled)
        if votes is not None:
            value_P_of[f"maj@{k}"] = estimates.majority(correct_PK, votes)
    found = {
        name: {field: _finite(number) for field, number in dataclasses.asdict(estimate).items()}
        for name, estimate in estimates.estimate(value_P_of).items()
    }
    return {
        **{metric: found[name]["mean"] for name, metric in metric_of.items()},
        "estimates": found,
        "has_votes": _votes(greedy) is not None,
        "generation": _generation(sampled or greedy),
    }


def write(
    out: pathlib.Path,
    summary: Mapping[str, Any],
    greedy: Sequence[Chunk],
    sampled: Sequence[Chunk],
) -> None:
    """Writes `evaluation.jsonl` and then `evaluation.json`, each whole or not at all."""
    problems = _problems(greedy, sampled)
    lines = "".join(json.dumps(problem, allow_nan=False) + "\n" for problem in problems)
    workdirs.replace(out / "evaluation.jsonl", lines)
    text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    workdirs.replace(out / "evaluation.json", text)


def table(summary: Mapping[str, Any]) -> str:
    """A summary for a person to read."""
    sampling, generation, grading = (
        summary[section] for section in ("sampling", "generation", "grading")
    )
    if "workdir" in summary:
        subject = f"{summary['workdir']} after {summary['updates']} updates"
    else:
        subject = summary["hf_dir"]
    cuts = "".join(
        f", {name} {sampling[name]:g}"
        for name, none in (("top_k", 0), ("top_p", 1), ("min_p", 0))
        if sampling[name] != none and sampling["temperature"]
    )
    lines = [
        f"{subject}: {summary['num_prompts']} held-out prompts of task {summary['task']!r}, "
        f"temperature {sampling['temperature']:g}{cuts}, seed {sampling['seed']}",
        f"  {'':10s}mean   ± error  95 % interval over prompts",
        *(_row(name, estimate) for name, estimate in summary["estimates"].items()),
    ]
    if not summary["has_votes"]:
        lines.append(f"  no maj@{summary['samples_per_prompt']}: the task names no answers to vote")
    failed = grading["timeouts"] + grading["deaths"] + grading["errors"]
    if failed:
        lines.append(
            f"  {failed} gradings failed and count as wrong: {grading['timeouts']} took too long, "
            f"in {grading['deaths']} the process died, {grading['errors']} raised"
        )
    compiled = "including compilation" if generation["has_compilation"] else "no compilation"
    lines += [
        f"  {generation['tokens_per_s']:.0f} tokens/s, {generation['responses_per_s']:.1f} "
        f"responses/s on {summary['device']['kind']} ({compiled}, no grading)",
        f"  {generation['mean_tokens']:.1f} tokens a response, {generation['truncated_share']:.1%} "
        f"of {generation['responses']} truncated at {sampling['max_response_tokens']}",
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, estimate: Mapping[str, float | None]) -> str:
    """A line of the table."""
    words = f"  {name:10s}{estimate['mean']:.3f}"
    if estimate["low"] is None:
        return f"{words}  of one prompt, no interval"
    return (
        f"{words}  ± {estimate['standard_error']:.3f}  "
        f"[{estimate['low']:.3f}, {estimate['high']:.3f}]"
    )


def _generation(chunks: Sequence[Chunk]) -> dict[str, Any]:
    """Lengths of all responses, and how fast those were drawn that nothing was compiled for."""
    length_PK = np.concatenate([chunk.answers.length_PK for chunk in chunks])
    stop_PK = np.concatenate([chunk.answers.stop_PK for chunk in chunks])
    # Later chunks compile, too, where they are the first with responses of some length.
    timed = chunks[1:] or chunks
    seconds = sum(chunk.generation_s for chunk in timed)
    return {
        "responses": int(length_PK.size),
        "tokens": int(length_PK.sum()),
        "mean_tokens": float(length_PK.mean()),
        "truncated_share": float((stop_PK == StopReason.LENGTH).mean()),
        "tokens_per_s": sum(int(chunk.answers.length_PK.sum()) for chunk in timed) / seconds,
        "responses_per_s": sum(chunk.answers.length_PK.size for chunk in timed) / seconds,
        "timed_responses": sum(chunk.answers.length_PK.size for chunk in timed),
        "has_compilation": len(chunks) == 1,
    }


def _problems(greedy: Sequence[Chunk], sampled: Sequence[Chunk]) -> list[dict[str, Any]]:
    """A record of each prompt with its responses."""
    prompts = [prompt for chunk in greedy for prompt in chunk.answers.prompts]
    greedy_responses = [responses for chunk in greedy for responses in _responses(chunk)]
    drawn: list[list[dict[str, Any]]] = [[] for _ in prompts]
    if sampled:
        drawn = [responses for chunk in sampled for responses in _responses(chunk)]
    return [
        {
            "index": prompt.index,
            "prompt": prompt.text,
            "answer": prompt.answer,
            "greedy": one,
            "responses": responses,
        }
        for prompt, (one,), responses in zip(prompts, greedy_responses, drawn, strict=True)
    ]


def _responses(chunk: Chunk) -> list[list[dict[str, Any]]]:
    """A record of each response to each prompt."""
    answers = chunk.answers
    return [
        [
            {
                "text": answers.texts[p][k],
                "num_tokens": int(answers.length_PK[p, k]),
                "stop": StopReason(answers.stop_PK[p, k]).name.lower(),
                "answer": None if chunk.votes is None else chunk.votes[p][k],
                "correct": bool(chunk.correct_PK[p, k]),
            }
            for k in range(answers.length_PK.shape[1])
        ]
        for p in range(len(answers.prompts))
    ]


def _correct_PK(chunks: Sequence[Chunk]) -> np.ndarray:
    """Which responses are right, of all prompts."""
    return np.concatenate([chunk.correct_PK for chunk in chunks])


def _votes(chunks: Sequence[Chunk]) -> list[Sequence[str | None]] | None:
    """The final answers of all prompts; None where the task names none."""
    votes = [chunk.votes for chunk in chunks if chunk.votes is not None]
    return [answers for part in votes for answers in part] if votes else None


def _finite(number: float) -> float | None:
    """A number as JSON has it."""
    return number if math.isfinite(number) else None
