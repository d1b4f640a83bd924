"""Directories of runs that were never trained, for tests of what is read from them."""

import json

SHA = "0123456789abcdef" * 4


def config(objective="asympo", num_updates=4, **fields):
    return {
        "seed": 0,
        "num_updates": num_updates,
        "prompts_per_update": 32,
        "group_size": 8,
        "lag": 16,
        "order": "ticket",
        "objective": {"name": objective, "alpha": None},
        "task": {"name": "arithmetic"},
        "eval": {"every_updates": 2, "num_prompts": 50, "samples_per_prompt": 2},
        **fields,
    }


def metrics_line(update, accuracy=None, **metrics):
    line = {
        "update": update,
        "reward/mean": 0.4 + update / 100,
        "nll/positive": 0.05,
        "nll/negative": 0.3,
        "balance/positive": 0.2,
        "balance/negative": -0.25,
        "balance/net": -0.05,
        "idle/learner": update / 10,
        "idle/sampler": 0.5,
        "pipeline/ideal_fraction": 0.875,
    }
    return {**line, **({} if accuracy is None else {"eval/accuracy": accuracy}), **metrics}


def write_run(
    directory, *, accuracies=(0.5, None, 0.7, None, 0.8), result=True, lines=None, **fields
):
    """A run of 4 updates that was evaluated at updates 0, 2 and 4."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config(**fields)))
    if lines is None:
        lines = [{"update": 0, "eval/accuracy": accuracies[0]}]
        lines += [metrics_line(i, accuracy) for i, accuracy in enumerate(accuracies) if i]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "metrics.jsonl").write_text(text)
    if result:
        update, accuracy = lines[-1]["update"], lines[-1].get("eval/accuracy", 0.6)
        result = {"updates": update, "eval/accuracy": accuracy, "wall_s": 61.3}
        (directory / "result.json").write_text(json.dumps(result | {"parameters_sha256": SHA}))
    return directory
