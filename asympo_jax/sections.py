"""The sections of a config as frozen dataclasses; each refuses values out of range."""

import dataclasses
from collections.abc import Callable
from typing import Any

from asympo_jax.models import PARAMS_DTYPES, MeshShape, ParamsDtype
from asympo_jax.models.config import REMATS, Remat


@dataclasses.dataclass(frozen=True)
class LearnerConfig:
    """The learner.

    Attributes:
        platform: jax platform; empty for jax's own choice.
        visible_devices: numbers of the GPUs or TPU chips of this machine that it takes, with commas
            between; empty for all, so that samplers on the same platform have none of their own.
        data: devices that hold the same parameters, each for its own rows of a micro-batch.
        fsdp: devices that hold a part of the parameters, and have their own rows, too.
        tensor: devices that share the heads, the MLP and the vocabulary of the same rows. There
            are data · fsdp · tensor devices; on CPUs, as many parts of the learner's cores.
        micro_batch: rows of responses whose activations are held at once; 0 for as many as there
            are responses, in which case packing saves nothing.
        remat: what the gradient computes again to hold less; see `models.ModelConfig`.
        logp_chunk: tokens whose logits are held at once; 0 for a number by the vocabulary.
        proximal_every_updates: updates after which the proximal parameters, of objectives that
            need them, are renewed.
        max_skipped_updates: updates in a row that may be skipped because something in them is not
            finite; one more ends the run.
    """

    platform: str
    visible_devices: str
    data: int
    fsdp: int
    tensor: int
    micro_batch: int
    remat: Remat
    logp_chunk: int
    proximal_every_updates: int
    max_skipped_updates: int

    def __post_init__(self):
        """Refuses values outside their range."""
        _require(
            self,
            "learner",
            lambda x: x in ("", "cpu", "cuda", "tpu"),
            "must be 'cpu', 'cuda', 'tpu' or empty for jax's choice",
            "platform",
        )
        sizes = ("micro_batch", "logp_chunk", "max_skipped_updates")
        _require(self, "learner", lambda x: x >= 0, "must not be negative", *sizes)
        _require(self, "learner", lambda x: x in REMATS, f"must be one of {list(REMATS)}", "remat")
        at_least = "must be at least 1"
        counts = ("data", "fsdp", "tensor", "proximal_every_updates")
        _require(self, "learner", lambda x: x >= 1, at_least, *counts)

    @property
    def mesh(self) -> MeshShape:
        """The devices along each axis of the mesh."""
        return MeshShape(self.data, self.fsdp, self.tensor)


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """The samplers.

    Attributes:
        count: processes that sample.
        platform: jax platform of each.
        visible_devices: numbers of the GPUs or TPU chips of this machine that they take, with
            commas between, dealt out in order: of '4,5,6,7' two samplers have 4,5 and 6,7. Several
            may share a GPU: of '1' two samplers have 1. Empty leaves the one sampler all.
        memory_fraction: of a GPU's memory that each may take; 0 for jax's own, three quarters.
        cores: CPU cores of each; 0 lets all share the samplers' half of the machine.
        devices: of each that share the prompts of a lease; on CPUs, the parts that its cores are
            split into: as many as cores is fastest, and takes a copy of the parameters for each.
        tensor: devices that share a copy of the parameters, split as by `learner.tensor`; there are
            devices / tensor copies.
        temperature: divides the logits.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the most probable tokens up to this mass; 1 keeps all.
        min_p: keep tokens of at least this share of the largest probability; 0 keeps all.
        max_prompt_tokens: room for a prompt.
        max_response_tokens: longest response, stop token included.
        segment: positions by which the decode cache grows; 0 for a sixth of the longest response,
            32 at least.
        lanes: prompts decoded at once, the next one where one is done; 0 for all of a lease.
        prompts_per_lease: prompts of a lease; unset for all that an update samples.
        record_behaviour_logp: record log-probs even if the objective needs none, for diagnostics.
        params_dtype: of the parameters that samplers are sent, see `models.rounded`; the learner's
            stay float32.
    """

    count: int
    platform: str
    visible_devices: str
    memory_fraction: float
    cores: int
    devices: int
    tensor: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    max_prompt_tokens: int
    max_response_tokens: int
    segment: int
    lanes: int
    prompts_per_lease: int
    record_behaviour_logp: bool
    params_dtype: ParamsDtype

    def __post_init__(self):
        """Refuses values that no sampler can work with."""
        _require(
            self,
            "sampler",
            lambda x: x >= 1,
            "must be at least 1",
            "count",
            "devices",
            "tensor",
            "max_prompt_tokens",
            "max_response_tokens",
        )
        sizes = ("cores", "segment", "lanes")
        _require(self, "sampler", lambda x: x >= 0, "must not be negative", *sizes)
        _require(self, "sampler", lambda x: 0 <= x < 2**31, "must be from 0 to 2**31 - 1", "top_k")
        _require(
            self,
            "sampler",
            lambda x: 0.01 <= x <= 100,
            "must be from 0.01 to 100; greedy responses of a group are all alike and teach nothing",
            "temperature",
        )
        _require(self, "sampler", lambda x: 0 < x <= 1, "must be above 0 and at most 1", "top_p")
        _require(self, "sampler", lambda x: 0 <= x <= 1, "must be from 0 to 1", "min_p")
        _require(
            self,
            "sampler",
            lambda x: x in ("cpu", "cuda", "tpu"),
            "must be 'cpu', 'cuda' or 'tpu'",
            "platform",
        )
        _require(
            self,
            "sampler",
            lambda x: x in PARAMS_DTYPES,
            f"must be one of {list(PARAMS_DTYPES)}",
            "params_dtype",
        )
        for field, largest in (
            ("segment", "max_response_tokens"),
            ("lanes", "prompts_per_lease"),
        ):
            most = getattr(self, largest)
            words = f"must be at most sampler.{largest}={most}"
            _require(self, "sampler", lambda x, most=most: x <= most, words, field)
        if self.devices % self.tensor:
            raise ValueError(
                f"sampler.tensor={self.tensor}: must divide sampler.devices={self.devices}"
            )
        share, platform = self.memory_fraction, self.platform
        if share and (not 0 < share <= 1 or platform != "cuda"):
            raise ValueError(
                f"sampler.memory_fraction={share} with sampler.platform={platform!r}: must be 0, "
                "or with 'cuda' at most 1"
            )

    @property
    def num_copies(self) -> int:
        """Copies of the parameters that its devices have."""
        return self.devices // self.tensor


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """What the task's reward is replaced or changed by in training; accuracies stay the task's.

    Attributes:
        function: import path of a function (prompt, response text) -> reward; None for the task's.
        overlong_buffer: tokens before the longest response over which a penalty rises; 0 for none.
        overlong_penalty: subtracted from the reward of a response of the longest length.
        num_processes: processes that a sampler grades with; 0 grades in the sampler itself. None
            for one, but 0 for the cheap tasks of this package with their own rewards.
        deadline_s: seconds that one grading in a process may take.
        max_failed_share: of recent groups, those that may have a response that could not be graded;
            a run in which they are more ends; with 1 none does.
        isolate: whether each grading in a process begins with the state that the task was made
            with, whatever the ones before did to it, at the price of a fork each.
    """

    function: str | None
    overlong_buffer: int
    overlong_penalty: float
    num_processes: int | None
    deadline_s: float
    max_failed_share: float
    isolate: bool

    def __post_init__(self):
        """Refuses values outside their range."""
        _require(self, "reward", lambda x: x >= 0, "must not be negative", "overlong_buffer")
        # So that it takes no reward beyond the largest one allowed.
        _require(
            self, "reward", lambda x: 0 <= x <= 1e6, "must be from 0 to 1000000", "overlong_penalty"
        )
        if self.num_processes is not None and not 0 <= self.num_processes <= 1024:
            raise ValueError(f"reward.num_processes={self.num_processes}: must be from 0 to 1024")
        if not 0 < self.deadline_s <= 3600:
            raise ValueError(f"reward.deadline_s={self.deadline_s}: must be above 0, at most 3600")
        _require(self, "reward", lambda x: 0 <= x <= 1, "must be from 0 to 1", "max_failed_share")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation on held-out prompts.

    Attributes:
        every_updates: one every so many updates; 0 only before and after training.
        num_prompts: held-out prompts; at most what the task has.
        samples_per_prompt: responses to each prompt, the k of avg@k.
        max_rows: responses worked at once; those to one prompt always are.
        process: whether snapshots are evaluated in a process of its own, which never holds up the
            learner; else the learner evaluates. Unset for yes, if there are other processes.
        max_waiting: snapshots that may be kept for that process; evaluations beyond are left out.
        deadline_s: seconds without an evaluation that was asked for after which that process is
            started anew, and the end of the run gives up waiting.
        platform: jax platform of that process; unset for the samplers'.
        visible_devices: as `learner.visible_devices`, of that process; unset for the first of the
            samplers' GPUs.
    """

    every_updates: int
    num_prompts: int
    samples_per_prompt: int
    max_rows: int
    process: bool
    max_waiting: int
    deadline_s: float
    platform: str
    visible_devices: str

    def __post_init__(self):
        """Refuses values outside their range."""
        _require(self, "eval", lambda x: x >= 0, "must not be negative", "every_updates")
        _require(
            self,
            "eval",
            lambda x: x >= 1,
            "must be at least 1",
            "num_prompts",
            "samples_per_prompt",
            "max_rows",
            "max_waiting",
        )
        _require(
            self,
            "eval",
            lambda x: x in ("cpu", "cuda", "tpu"),
            "must be 'cpu', 'cuda' or 'tpu'",
            "platform",
        )
        _require(
            self, "eval", lambda x: 0 < x <= 1e6, "must be above 0, at most 1000000", "deadline_s"
        )


def _require(
    section: Any, name: str, allowed: Callable[[Any], bool], words: str, *fields: str
) -> None:
    """Raises a `ValueError` that names the field and its value unless `allowed` holds."""
    for field in fields:
        value = getattr(section, field)
        if not allowed(value):
            raise ValueError(f"{name}.{field}={value!r}: {words}")
