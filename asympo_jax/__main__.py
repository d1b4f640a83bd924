"""One command with a verb for each command line of the package.

    asympo train --config=configs/arithmetic.py
    asympo train --help

`python -m asympo_jax train` and `python -m asympo_jax.train` are the same. Exit codes are those of
the verb; 2 if there is none of that name.
"""

import runpy
import sys

from asympo_jax import __version__, nearest

VERBS = {
    "train": "train, or carry a run on that was stopped",
    "evaluate": "accuracy of a checkpoint or of a Hugging Face directory",
    "inspect": "browse the responses that a run sampled",
    "report": "compare runs: a table and a page with pictures",
    "replay": "train again on the batches that a run recorded",
    "sweep": "repeat an experiment over values of its fields",
    "export": "write a checkpoint as a Hugging Face directory",
    "plan": "memory, FLOPs and bounds of a run, before it is started",
    "tiny": "make a tiny random model, to try the configs of real ones with",
}
_HELP = ("-h", "--help", "help")


def main() -> int:
    """Becomes the command that the verb names; returns the exit code where there is none."""
    verb, *rest = sys.argv[1:] or [""]
    if verb in VERBS:
        sys.argv = [f"asympo {verb}", *rest]
        if not sys.flags.safe_path:
            sys.path.insert(0, "")  # the current folder, as `python -m` has it and a script not
        names = {"PROGRAM": f"asympo {verb}"}
        runpy.run_module(f"asympo_jax.{verb}", names, run_name="__main__", alter_sys=True)
        return 0
    if verb in _HELP:
        sys.stdout.write(_usage())
        return 0
    if verb == "--version":
        sys.stdout.write(f"asympo_jax {__version__}\n")
        return 0
    what = f"there is no verb {verb!r}{nearest.hint(verb, VERBS)}" if verb else "a verb is missing"
    sys.stderr.write(f"error: {what}; asympo --help lists them\n")
    return 2


def _usage() -> str:
    """What the verbs are."""
    lines = (f"  {verb:10s}{words}\n" for verb, words in VERBS.items())
    return (
        "Usage: asympo VERB [--FLAG=VALUE]...\n\n"
        "Asynchronous RL post-training of language models without behaviour information.\n\n"
        f"{''.join(lines)}\n"
        "asympo VERB --help explains a verb: what it does, an example, its flags, exit codes.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
