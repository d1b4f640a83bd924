"""Responses packed into rows beside their prompts, so that little is computed for padding.

The decoder runs a prompt once for several responses, as the sampler does, and several responses lie
in one row, one after the other. Rows stand in blocks of one prompt each; some blocks make a
micro-batch. How many rows a block has is chosen by what costs least for the batch at hand: each
choice is a compilation of its own, the number of micro-batches is not.

Letters: M micro-batches, N blocks of each, R rows of each block, C columns of each row.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from asympo_jax.models import put, row_sharding
from asympo_jax.types import Batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Where the decoder finds what it scores, in a micro-batch. All int32.

    A column holds the token that the decoder reads; it predicts `target`. A response begins with
    the column of its prompt's last token, so `prompt` is without it.

    Attributes:
        prompt_NS: tokens of the prompts but the last, left-aligned.
        prompt_length_N: number of them.
        token_NRC: tokens read.
        target_NRC: tokens predicted.
        position_NRC: positions of the tokens read in their sequences.
        segment_NRC: number of the response in its block; -1 for padding.
        response_NG: index in the batch of each response of a block; B for none.
        place_NG: where it begins in its micro-batch, of N·R·C columns.
    """

    prompt_NS: Any
    prompt_length_N: Any
    token_NRC: Any
    target_NRC: Any
    position_NRC: Any
    segment_NRC: Any
    response_NG: Any
    place_NG: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedBatch:
    """A batch and the rows that its responses lie in.

    Attributes:
        batch: as it came.
        rows: with an axis of M micro-batches before all others. There is room for the longest
            responses, so the last micro-batches may be empty.
        num_micro_batches: those that are not.
        first_B: position of each response's first drawn token.
        place_B: where that is predicted, of M·N·R·C columns.
    """

    batch: Batch
    rows: Rows
    num_micro_batches: Any
    first_B: Any
    place_B: Any


@dataclasses.dataclass(frozen=True)
class Packing:
    """The shape of rows.

    Attributes:
        group_size: G; responses to different prompts never share a block.
        micro_batch: rows at once; 0 for as many as there are responses.
        max_prompt_tokens: room for a prompt; 0 for all positions.
        max_response_tokens: columns of a row (C); 0 for all positions.
        row_shards: parts that the blocks of a micro-batch are split into, one for each device.
    """

    group_size: int
    micro_batch: int
    max_prompt_tokens: int = 0
    max_response_tokens: int = 0
    row_shards: int = 1


# One prompt and the rows of its responses, each row a list of them.
_PromptRows = tuple[np.ndarray, list[list[int]]]


def pack(packing: Packing, batch: Batch) -> PackedBatch:
    """The batch with its responses in rows.

    Args:
        packing: the shape of rows.
        batch: on the host. A response reaches from its first drawn token to its last.
    """
    drawn_BT = np.asarray(batch.drawn_BT)
    num_responses, num_positions = drawn_BT.shape
    has_B = drawn_BT.any(axis=1)
    first_B = np.where(has_B, drawn_BT.argmax(axis=1), 0)
    end_B = np.where(has_B, num_positions - drawn_BT[:, ::-1].argmax(axis=1), 0)
    assert (first_B[has_B] > 0).all(), "a first token has no prompt"
    num_columns = packing.max_response_tokens or num_positions - 1
    assert (end_B - first_B).max() <= num_columns, (end_B - first_B, num_columns)
    tokens_BT = np.asarray(batch.tokens_BT)
    prompts = list(_by_prompt(packing, tokens_BT, first_B, end_B - first_B, num_columns))
    rows_at_once = packing.micro_batch or num_responses
    room = (packing.max_prompt_tokens or num_positions) - 1
    rows_a_block = _cheapest(packing, prompts, num_responses, room, num_columns)
    num_blocks = rows_at_once // rows_a_block
    blocks = [
        (prompt, rows[i : i + rows_a_block])
        for prompt, rows in prompts
        for i in range(0, len(rows), rows_a_block)
    ]
    longest = num_responses // packing.group_size * -(-packing.group_size // rows_a_block)
    num_micro_batches = -(-max(longest, len(blocks)) // num_blocks)
    filler = _Filler(
        (num_micro_batches * num_blocks, rows_a_block, num_columns), room, packing.group_size,
        num_responses, num_blocks,
    )  # fmt: skip
    for number, (prompt, rows) in enumerate(blocks):
        filler.fill(number, prompt, rows, tokens_BT, first_B, end_B)
    in_micro_batches = jax.tree.map(
        lambda x: x.reshape(num_micro_batches, num_blocks, *x.shape[1:]), filler.rows
    )
    return PackedBatch(
        batch=batch,
        rows=in_micro_batches,
        num_micro_batches=np.int32(-(-len(blocks) // num_blocks)),
        first_B=first_B.astype(np.int32),
        place_B=filler.place_B,
    )


def spread(mesh: jax.sharding.Mesh, packed: PackedBatch) -> PackedBatch:
    """The batch on a mesh: each device has its own rows, and its share of the responses."""
    return jax.tree.map(put, shardings_of_packed(mesh, packed), packed)


def shardings_of_packed(mesh: jax.sharding.Mesh, packed: PackedBatch) -> PackedBatch:
    """Where each array of a packed batch lies on a mesh."""
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    by_response, by_block = row_sharding(mesh), row_sharding(mesh, axis=1)
    return PackedBatch(
        batch=Batch(
            tokens_BT=by_response,
            drawn_BT=by_response,
            reward_PG=everywhere,
            behaviour_logp_BT=jax.tree.map(lambda _: by_response, packed.batch.behaviour_logp_BT),
        ),
        rows=jax.tree.map(lambda _: by_block, packed.rows),
        num_micro_batches=everywhere,
        first_B=by_response,
        place_B=by_response,
    )


def _by_prompt(
    packing: Packing,
    tokens_BT: np.ndarray,
    first_B: np.ndarray,
    length_B: np.ndarray,
    num_columns: int,
) -> Iterator[_PromptRows]:
    """Each prompt of each group with its responses in rows."""
    for start in range(0, len(tokens_BT), packing.group_size):
        members: dict[bytes, list[int]] = {}
        for b in range(start, start + packing.group_size):
            if length_B[b]:
                members.setdefault(tokens_BT[b, : first_B[b]].tobytes(), []).append(b)
        for responses in members.values():
            one = responses[0]
            yield tokens_BT[one, : first_B[one]], _first_fit(responses, length_B, num_columns)


def _first_fit(responses: list[int], length_B: np.ndarray, num_columns: int) -> list[list[int]]:
    """Responses in rows: the longest first, each into the first row that has room for it."""
    rows: list[list[int]] = []
    room: list[int] = []
    for b in sorted(responses, key=lambda b: -length_B[b]):
        row = next((i for i, left in enumerate(room) if left >= length_B[b]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(num_columns)
        rows[row].append(b)
        room[row] -= length_B[b]
    return rows


def _cheapest(
    packing: Packing, prompts: list[_PromptRows], num_responses: int, room: int, num_columns: int
) -> int:
    """Rows of a block with which the decoder reads the fewest tokens; of equal ones the most."""
    rows_at_once = packing.micro_batch or num_responses

    def num_tokens(rows_a_block: int) -> int:
        num_blocks = sum(-(-len(rows) // rows_a_block) for _, rows in prompts)
        at_once = rows_at_once // rows_a_block
        return -(-num_blocks // at_once) * at_once * (room + rows_a_block * num_columns)

    # Each part has as many whole blocks.
    allowed = [
        n for n in range(1, packing.group_size + 1) if rows_at_once % (n * packing.row_shards) == 0
    ]
    # Powers of two and the most: each that is ever chosen is compiled.
    allowed = [n for n in allowed if n & (n - 1) == 0 or n == allowed[-1]]
    return min(reversed(allowed), key=num_tokens)


class _Filler:
    """Rows that are filled block by block; micro-batches are told apart later."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        room: int,
        group_size: int,
        num_responses: int,
        num_blocks: int,
    ):
        """Empty rows.

        Args:
            shape: blocks in all, rows of each, columns of each row.
            room: for a prompt.
            group_size: G.
            num_responses: B.
            num_blocks: of a micro-batch.
        """

        def zeros(*shape: int) -> np.ndarray:
            return np.zeros(shape, np.int32)

        self._num_blocks = num_blocks
        self.place_B = zeros(num_responses)
        self.rows = Rows(
            prompt_NS=zeros(shape[0], room),
            prompt_length_N=zeros(shape[0]),
            token_NRC=zeros(*shape),
            target_NRC=zeros(*shape),
            position_NRC=zeros(*shape),
            segment_NRC=zeros(*shape) - 1,
            response_NG=zeros(shape[0], group_size) + num_responses,
            place_NG=zeros(shape[0], group_size),
        )

    def fill(
        self,
        number: int,
        prompt: np.ndarray,
        responses_of_rows: list[list[int]],
        tokens_BT: np.ndarray,
        first_B: np.ndarray,
        end_B: np.ndarray,
    ) -> None:
        """Writes a block."""
        rows = self.rows
        _, num_rows, num_columns = rows.token_NRC.shape
        rows.prompt_NS[number, : len(prompt) - 1] = prompt[:-1]
        rows.prompt_length_N[number] = len(prompt) - 1
        member = 0
        for row, responses in enumerate(responses_of_rows):
            column = 0
            for b in responses:
                first, end = first_B[b], end_B[b]
                place = (number, row, slice(column, column + end - first))
                rows.token_NRC[place] = tokens_BT[b, first - 1 : end - 1]
                rows.target_NRC[place] = tokens_BT[b, first:end]
                rows.position_NRC[place] = np.arange(first - 1, end - 1)
                rows.segment_NRC[place] = member
                rows.response_NG[number, member] = b
                within = row * num_columns + column
                rows.place_NG[number, member] = (
                    number % self._num_blocks * num_rows * num_columns + within
                )
                self.place_B[b] = number * num_rows * num_columns + within
                member += 1
                column += end - first
