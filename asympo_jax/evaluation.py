"""An evaluation by itself: of any checkpoint of a run, or of a Hugging Face directory.

Decisions. Draws are those of the evaluation in training, so a checkpoint has the accuracies that
its run logged for it. Everything is generated and graded before anything is written. Grading is
left out of the throughput, and so is the first chunk, which compiles, where there are several.
"""

import copy
import dataclasses
import pathlib
import time
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import jax
import ml_collections

from asympo_jax import evaluation_report, experiment, interrupts, models, states, workdirs
from asympo_jax.config import default_config, resolve
from asympo_jax.endings import failures
from asympo_jax.evaluation_report import Chunk
from asympo_jax.initial import check_initial
from asympo_jax.progress import Count
from asympo_jax.runtime import placement
from asympo_jax.runtime.compilation import keep_compiled
from asympo_jax.sampling import Answers, Evaluator
from asympo_jax.settings import ExperimentConfig
from asympo_jax.tasks import RewardError, Task, answer_of
from asympo_jax.types import GradingFailure

_LESS_MEMORY = ", --max_rows makes it less"


@dataclasses.dataclass(frozen=True)
class Request:
    """What a person asks for; None leaves it to the config or to what is said.

    Attributes:
        workdir: of a run, whose config and checkpoint are taken; or
        hf_dir: Hugging Face directory of a decoder, and
        config: with the task, the lengths and `model.dtype`.
        update: of the checkpoint; the newest.
        out: where the two files go; the workdir.
        platform: of jax; `learner.platform`.
        num_prompts: held-out prompts.
        samples: responses a prompt (k); 1 at temperature 0.
        temperature: 0 is greedy alone.
        top_k: as of `sampler`.
        top_p: as of `sampler`.
        seed: of the draws; 0 is that of the evaluation in training.
        max_rows: responses worked at once.
    """

    workdir: pathlib.Path | None = None
    hf_dir: pathlib.Path | None = None
    config: ml_collections.ConfigDict | None = None
    update: int | None = None
    out: pathlib.Path | None = None
    platform: str | None = None
    num_prompts: int | None = None
    samples: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    max_rows: int | None = None

    def __post_init__(self):
        """Refuses what does not go together."""
        if (self.workdir is None) == (self.hf_dir is None):
            given = "both" if self.workdir is not None else "neither"
            raise ValueError(f"give one of --workdir and --hf_dir, not {given}")
        if self.hf_dir is not None and self.update is not None:
            raise ValueError(f"--update={self.update}: goes with --workdir, not with --hf_dir")
        if self.hf_dir is not None and self.out is None:
            raise ValueError("--hf_dir needs --out: the directory to write evaluation.json to")
        if self.workdir is not None and self.config is not None:
            raise ValueError("--config goes with --hf_dir: a --workdir has its own config")
        if not self.is_greedy:
            return
        if self.samples not in (None, 1):
            raise ValueError(f"--samples={self.samples}: must be 1 at --temperature=0")
        if self.top_k is not None or self.top_p is not None:
            raise ValueError("--top_k and --top_p cut what is drawn: not with --temperature=0")

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn at random."""
        return self.temperature == 0

    def experiment(self) -> ml_collections.ConfigDict:
        """The config of the run or the one given, with what is asked for otherwise."""
        config: Any
        if self.workdir is not None:
            config = workdirs.read_config(self.workdir)
        else:
            assert self.config is not None
            config = copy.deepcopy(self.config)
            # Before references are resolved: task.tokenizer_dir may be one.
            config.model.hf_dir = str(self.hf_dir)
            config = config.copy_and_resolve_references()
            config.warmup.num_steps = 0  # nothing is trained, so no demonstrations are needed
            shape = default_config().model.to_dict()  # the directory's counts, not the config's
            config.model.update(shape | {name: config.model[name] for name in ("dtype", "hf_dir")})
        if self.is_greedy or self.samples is not None:
            config.eval.samples_per_prompt = self.samples or 1
        if self.max_rows is not None:
            config.eval.max_rows = self.max_rows
        if self.num_prompts is not None:
            config.eval.num_prompts = self.num_prompts
        if self.temperature:
            config.sampler.temperature = self.temperature
        if self.top_k is not None:
            config.sampler.top_k = self.top_k
        if self.top_p is not None:
            config.sampler.top_p = self.top_p
        return config


@dataclasses.dataclass(frozen=True)
class Prepared:
    """An evaluation that was checked, with its parameters.

    Attributes:
        request: what was asked for.
        config: the experiment.
        parts: the task and the model of the parameters.
        params: of the decoder.
        subject: what is evaluated, for the summary.
        out: directory of the two files.
    """

    request: Request
    config: ExperimentConfig
    parts: experiment.Parts
    params: Any
    subject: dict[str, Any]
    out: pathlib.Path

    def run(self) -> dict[str, Any]:
        """Generates, grades, writes; returns what `evaluation.json` then holds.

        Raises:
            RunFailed: a grader raised, memory or the disk is full.
        """
        evaluator = dataclasses.replace(
            experiment.make_evaluator(self.config, self.parts),
            seed=self.request.seed,
        )
        with failures(placement.NoDevice, RewardError, OSError, advice=_LESS_MEMORY):
            greedy = _graded("greedy", evaluator, evaluator.greedy_answers(self.params))
            sampled = []
            if not self.request.is_greedy:
                sampled = _graded("sampled", evaluator, evaluator.sampled_answers(self.params))
            summary = {**self._circumstances(), **evaluation_report.findings(greedy, sampled)}
            evaluation_report.write(self.out, summary, greedy, sampled)
        return summary

    def _circumstances(self) -> dict[str, Any]:
        """What was evaluated and how; read after grading."""
        config, sampler, pool = self.config, self.config.sampler, self.parts.grader.pool
        counts = Counter() if pool is None else pool.counts
        device = jax.devices()[0]
        return {
            **self.subject,
            "task": config.task_name,
            "num_prompts": config.eval.num_prompts,
            "samples_per_prompt": config.eval.samples_per_prompt,
            "sampling": {
                "temperature": 0.0 if self.request.is_greedy else sampler.temperature,
                "top_k": sampler.top_k,
                "top_p": sampler.top_p,
                "min_p": sampler.min_p,
                "max_response_tokens": sampler.max_response_tokens,
                "seed": self.request.seed,
            },
            "grading": {
                "timeouts": counts[GradingFailure.TIMEOUT],
                "deaths": counts[GradingFailure.DEATH],
                "errors": counts[GradingFailure.ERROR],
            },
            "device": {"platform": device.platform, "kind": device.device_kind},
            "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "numpy")},
            "config": config.source,
        }


def prepare(request: Request) -> Prepared:
    """Checks everything, then loads the parameters.

    Raises:
        ValueError: something of the request, the config, the checkpoint or the directory cannot be
            used; nothing was computed.
        RunFailed: there is no such device, or its memory is full.
    """
    config = resolve(request.experiment())
    parts = experiment.build_parts(config)
    check_initial(config)
    out = request.out or request.workdir
    assert out is not None
    workdirs.check_writable("out", out)
    with failures(placement.NoDevice, RewardError, OSError, advice=_LESS_MEMORY):
        keep_compiled(config.compilation_cache)
        platform = config.learner.platform if request.platform is None else request.platform
        placement.start_backend("platform", platform)
        if request.workdir is not None:
            state = states.load_state(config, parts, request.workdir, request.update)
            params = experiment.as_sampled(config, state.policy)
            subject = {"workdir": str(request.workdir), "updates": int(state.update)}
            return Prepared(request, config, parts, params, subject, out)
        assert request.hf_dir is not None
        model = models.load(request.hf_dir, config.model["dtype"])
        subject = {"hf_dir": str(request.hf_dir)}
        return Prepared(request, config, parts, model.params, subject, out)


def _graded(name: str, evaluator: Evaluator, chunks: Iterator[Answers]) -> list[Chunk]:
    """Draws and grades all responses, and says how far it is."""
    task, graded, done = evaluator.task, [], 0
    count = Count(name, evaluator.num_prompts)
    start = time.monotonic()
    for answers in chunks:
        generation_s = time.monotonic() - start
        interrupts.raise_if_received()
        votes = None
        if type(task).answer is not Task.answer:
            votes = [
                [answer_of(task, prompt, text) for text in texts]
                for prompt, texts in zip(answers.prompts, answers.texts, strict=True)
            ]
        graded.append(Chunk(answers, evaluator.grade(answers), votes, generation_s))
        done += len(answers.prompts)
        count.show(done)
        start = time.monotonic()
    return graded
