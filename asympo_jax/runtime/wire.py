"""Messages between roles as bytes: msgpack with plain arrays, nothing that could be executed.

Whatever comes in is checked before it is used: a frame is data from outside.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np

from asympo_jax.runtime.leases import Lease, Refusal, Refused
from asympo_jax.types import GradingFailure, Group

_ARRAY = 1  # the code of arrays among the extensions of msgpack
# All types that arrays on the wire have. NumPy reads no other name: some end the process.
_DTYPES = {
    name: np.dtype(name)
    for name in (
        "bool", "int8", "int16", "int32", "int64", "uint8", "float16", "float32", "float64"
    )
}  # fmt: skip
_GROUP_ARRAYS = {
    "prompt_S": (np.int32, 1),
    "response_GT": (np.int32, 2),
    "length_G": (np.int32, 1),
    "stop_G": (np.int8, 1),
    "reward_G": (np.float32, 1),
}


class BadFrame(Refused):
    """A frame that is not what its sender should have sent."""

    def __init__(self, words: str, reason: Refusal = "frame"):
        """Carries the reason."""
        super().__init__(words, reason)


def encode(message: dict[str, Any]) -> bytes:
    """A message with a `type` as bytes."""
    frame = msgpack.packb(message, default=_packed)
    assert frame is not None
    return frame


def decode(frame: bytes) -> dict[str, Any]:
    """The message in a frame.

    Raises:
        BadFrame: the frame is not a message with a `type`.
    """
    try:
        message = msgpack.unpackb(frame, ext_hook=_array_from)
    except (
        ValueError, TypeError, LookupError, ArithmeticError, RecursionError,
        msgpack.UnpackException,
    ) as error:  # fmt: skip
        raise BadFrame(f"a frame of {len(frame)} bytes cannot be read ({error})") from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise BadFrame(f"a frame of {len(frame)} bytes is no message")
    return message


def _packed(array: Any) -> msgpack.ExtType:
    """An array as what `_array_from` reads."""
    if not isinstance(array, np.ndarray) or array.dtype.name not in _DTYPES:
        raise TypeError(f"a message holds plain data and arrays, got {type(array).__name__}")
    return msgpack.ExtType(_ARRAY, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))


def _array_from(code: int, data: bytes) -> np.ndarray:
    """The array in an extension.

    Raises:
        BadFrame: it is of another kind, type or size.
    """
    fields = msgpack.unpackb(data)
    match fields if code == _ARRAY else None:
        case [list(shape), str(name), bytes(content)] if name in _DTYPES and all(
            _is_count(length) for length in shape
        ):
            dtype = _DTYPES[name]
        case _:
            raise BadFrame(f"a frame has something else than arrays: {fields!r:.80}")
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise BadFrame(f"an array of {len(content)} bytes is not of shape {shape!r:.80}")
    return np.frombuffer(content, dtype).reshape(shape)


def lease_fields(lease: Lease) -> dict[str, Any]:
    """A lease as plain data."""
    return dataclasses.asdict(lease)


def lease_from(data: Any) -> Lease:
    """The lease in plain data.

    Raises:
        BadFrame: a field is missing, or is no integer from 0 on or, the run's, no text.
    """
    names = ["number", "attempt", "version"]
    if not isinstance(data, dict) or not all(_is_count(data.get(name)) for name in names):
        raise BadFrame(f"a lease must have the integers {names} from 0 on, got {data!r:.200}")
    if not isinstance(data.get("run_id"), str):
        raise BadFrame(f"lease.run_id must be a text, got {data.get('run_id')!r:.80}")
    return Lease(**{name: data[name] for name in [*names, "run_id"]})


def seconds_from(data: Any) -> float:
    """A duration in plain data.

    Raises:
        BadFrame: it is not a finite number of seconds from 0 on.
    """
    if not isinstance(data, float) or not 0 <= data < math.inf:
        raise BadFrame(f"a duration must be a number of seconds from 0 on, got {data!r:.80}")
    return data


def group_fields(group: Group) -> dict[str, Any]:
    """A group as plain data; what it does not have is left out."""
    fields = {field.name: getattr(group, field.name) for field in dataclasses.fields(Group)}
    return {name: value for name, value in fields.items() if value is not None}


def groups_from(data: Any) -> list[Group]:
    """The groups in plain data.

    Raises:
        BadFrame: a field is missing, or of a wrong type, rank or shape.
    """
    if not isinstance(data, Sequence):
        raise BadFrame(f"groups must be a list, got {type(data).__name__}")
    return [_group_from(fields) for fields in data]


def encode_groups(groups: Sequence[Group]) -> np.ndarray:
    """Groups as an array of bytes, to be stored."""
    fields = [group_fields(group) for group in groups]
    return np.frombuffer(encode({"type": "groups", "groups": fields}), np.uint8)


def decode_groups(stored: np.ndarray) -> list[Group]:
    """The groups that `encode_groups` stored.

    Raises:
        BadFrame: they are not whole.
    """
    return groups_from(decode(stored.tobytes()).get("groups"))


def _group_from(data: Any) -> Group:
    """One checked group."""
    if not isinstance(data, dict):
        raise BadFrame(f"a group must be a map, got {type(data).__name__}")
    for name in ("ticket", "version"):
        if not _is_count(data.get(name)):
            raise BadFrame(f"group.{name} must be an integer from 0 on, got {data.get(name)!r:.80}")
    arrays = dict(_GROUP_ARRAYS)
    if "behaviour_logp_GT" in data:
        arrays["behaviour_logp_GT"] = (np.float32, 2)
    if "failure_G" in data:
        arrays["failure_G"] = (np.int8, 1)
    for name, (dtype, rank) in arrays.items():
        array = data.get(name)
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != rank:
            raise BadFrame(f"group.{name} must be {np.dtype(dtype)} of rank {rank}", "shape")
    size, room = data["response_GT"].shape
    for name in arrays.keys() - {"prompt_S", "response_GT", "behaviour_logp_GT"}:
        if data[name].shape != (size,):
            words = f"group.{name} has shape {data[name].shape}, wanted {(size,)}"
            raise BadFrame(words, "shape")
    if data.get("behaviour_logp_GT", data["response_GT"]).shape != (size, room):
        raise BadFrame("group.behaviour_logp_GT must have the shape of group.response_GT", "shape")
    if not ((data["length_G"] >= 1) & (data["length_G"] <= room)).all():
        raise BadFrame(f"group.length_G must be from 1 to {room}", "length")
    if not np.isin(data.get("failure_G", 0), list(GradingFailure)).all():
        raise BadFrame(f"group.failure_G must be from 0 to {max(GradingFailure)}", "value")
    return Group(ticket=data["ticket"], version=data["version"], **{n: data[n] for n in arrays})


def _is_count(value: Any) -> bool:
    """Whether a value is an integer from 0 on, which `True` is not."""
    return type(value) is int and value >= 0
