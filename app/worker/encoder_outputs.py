"""What rows of an encoder-decoder keep of their encoders' inputs: K and V of each cross-attention, in blocks."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..attention.backends.base import AttentionBackend
from ..attention.context import ForwardContext
from ..attention.step import Ints, StepInput, StepShape
from ..core.media import Media
from ..core.sources import num_seen, sound_source, text_source
from ..core.step import NewRequest
from .similar_sizes import batches

if TYPE_CHECKING:  # importing transformers takes seconds
    from ..models.encoder_decoder import EncoderDecoder


class EncoderOutputs:
    """The state of an encoder-decoder's rows. See `ModelState`.

    The inputs of new requests are read by the encoder in padded batches, before the step in which they begin is
    computed. To the attention backend, each token of a step is a decode whose past is what its row's encoder has read.
    """

    def __init__(
        self,
        model: "EncoderDecoder",
        backend: AttentionBackend[Any],
        max_num_seqs: int,
        max_source_len: int,
        max_batched_tokens: int,
        block_size: int,
        device: torch.device,
    ) -> None:
        """`backend`: for the cross-attention alone. `max_batched_tokens`: of a batch of the encoder's with padding, but
        for a single input."""
        self._model = model
        self._backend = backend
        self._max_source_len = max_source_len
        self._max_batched_tokens = max_batched_tokens
        self._block_size = block_size
        self._device = device
        self._tables = np.zeros((max_num_seqs, -(-max_source_len // block_size)), dtype=np.int32)
        """(rows, blocks)"""
        self._lengths = np.ones(max_num_seqs, dtype=np.int64)
        """(rows,): tokens of what each row's encoder has read that its decoder sees."""
        self._unread: dict[int, tuple[Media, Ints]] = {}
        """By row: inputs that the encoder has to read before the next step, and the blocks for them."""

    def add(self, request: NewRequest) -> None:
        """See `ModelState.add`. A request without an input is made up, before there are others: it has the longest."""
        blocks, source = request.cross_blocks, request.extras.source
        if source is None:
            source = self._made_up()
            blocks = [0] * self._tables.shape[1]
        self._tables[request.row, : len(blocks)] = blocks
        self._lengths[request.row] = num_seen(source)
        if not request.is_encoded:
            self._unread[request.row] = source, np.array(blocks)

    def _made_up(self) -> Media:
        length, config = self._max_source_len, self._model.config
        if config.hears:
            return sound_source(np.zeros((config.num_mel_bins, config.num_frames), np.float32), length)
        return text_source([0] * length)

    def fields(self, shape: StepShape) -> dict[str, int]:  # noqa: ARG002
        """See `ModelState.fields`."""
        return {}

    def write(self, step: StepInput, to: Mapping[str, NDArray[np.int32]]) -> None:
        """See `ModelState.write`."""

    def inputs(self, step: StepInput, numbers: Mapping[str, Tensor]) -> dict[str, Any]:  # noqa: ARG002
        """See `ModelState.inputs`."""
        rows = set(step.rows.tolist())  # what is of no row was left behind by a step that failed
        unread = [read for row, read in self._unread.items() if row in rows]
        self._unread.clear()
        order = sorted(range(len(unread)), key=lambda index: unread[index][0].num_tokens)
        lengths = [unread[index][0].num_tokens for index in order]
        for indices in batches(order, lengths, self._max_batched_tokens):
            self._read([unread[index] for index in indices])
        of = step.token_rows
        no_slots = np.zeros(len(of), dtype=np.int64)
        return {"cross": self._context(no_slots, self._lengths[of], self._tables[of])}

    def _read(self, inputs: Sequence[tuple[Media, Ints]]) -> None:
        """Have the encoder read a batch of inputs, and keep what the decoder's layers see of that."""
        hidden = self._model.encode([source.numpy() for source, _ in inputs])
        places = [np.arange(num_seen(source)) for source, _ in inputs]
        slots = np.concatenate(
            [
                blocks[at // self._block_size] * self._block_size + at % self._block_size
                for at, (_, blocks) in zip(places, inputs, strict=True)
            ]
        )
        one = np.ones(len(slots), dtype=np.int64)  # nothing attends
        self._model.store(hidden, self._context(slots, one, np.zeros((len(slots), 1), dtype=np.int32)))

    def _context(self, slots: Ints, lengths: Ints, tables: NDArray[np.int32]) -> ForwardContext:
        """Tokens that are written to slots (tokens,), or see so many tokens, lengths (tokens,), in blocks (tokens, n).

        Each is a row of its own, since backends take several decodes of a row for one behind the other.
        """
        count = len(slots)
        each = np.arange(count)
        step = StepInput(
            order=each,
            rows=each,
            input_ids=np.zeros(count, dtype=np.int64),
            input_is_sampled=np.zeros(count, dtype=np.bool_),
            token_rows=each,
            positions=lengths - 1,
            slot_mappings=[slots],
            query_starts=np.arange(count + 1),
            seq_lens=lengths,
            num_decodes=count,
            block_size=self._block_size,
        )
        shape = StepShape(count, count, 0, is_long=step.longest_decode > self._backend.long_past)
        numbers = {name: np.zeros(size, dtype=np.int32) for name, size in self._backend.fields(shape).items()}
        self._backend.write(step, numbers)
        on_device = {name: torch.from_numpy(part).to(self._device) for name, part in numbers.items()}
        table = torch.from_numpy(tables).to(self._device)
        return ForwardContext(self._backend, self._backend.metadata(step, shape, on_device, [table]))
