"""Images among the tokens of prompts: what stands in their places in each step."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..attention.step import StepInput, StepShape
from ..core.media import Media, Placed
from ..core.step import NewRequest, RequestFaultError, WorkerOutOfMemoryError
from ..models.seeing import SeeingModel, StepImages
from .faults import named_faults

_MOST_KEPT_BYTES = 128 * 2**20
"""Of embeddings of images. One that is not kept is computed again when a later chunk of its prompt needs it."""
_IS_IMAGE, _AXES = "tokens of images", "positions along axes"
_GRID = "image_grid_thw"
"""The array that says how an image's places lie along the axes, in all families that have some."""


class ImageStates:
    """See `ModelState`.

    An image is seen when a step first needs some of it: not at all if all of its tokens are cached. What a forward
    pass reads lies in memory that does not move, so steps may be recorded.
    """

    def __init__(self, model: SeeingModel, max_num_seqs: int, max_tokens: int, device: torch.device) -> None:
        """`max_tokens`: of a step."""
        self._model = model
        self._device = device
        size = 1 + model.num_added, max_tokens, model.hidden_size
        self._rows = torch.zeros(size, dtype=model.dtype, device=device)
        self._media: list[list[Placed]] = [[]] * max_num_seqs
        """Of each row, until a step has passed the last of them: pixels are many bytes."""
        self._axes: list[NDArray[np.int64] | None] = [None] * max_num_seqs
        """As long, (3, tokens of the prompt)."""
        self._shifts = np.zeros(max_num_seqs, dtype=np.int64)
        """What is added to positions behind the last image: an image takes fewer of them than it has tokens."""
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        """What stands for images, by their digests; see `SeeingModel.see`."""

    def add(self, request: NewRequest) -> None:
        """See `ModelState.add`."""
        row, media = request.row, request.extras.placed
        self._media[row] = media
        self._axes[row], self._shifts[row] = None, 0
        if media and self._model.has_axes:
            self._axes[row] = axes = self._axes_of(media, request.num_prompt_tokens)
            self._shifts[row] = axes.max() + 1 - request.num_prompt_tokens

    def _axes_of(self, media: list[Placed], num_tokens: int) -> NDArray[np.int64]:
        is_image = torch.zeros(num_tokens, dtype=torch.bool)
        for run in (run for one in media for run in one.runs):
            is_image[run.start : run.end] = True
        grids = torch.from_numpy(np.concatenate([one.media.arrays[_GRID].numpy() for one in media]))
        axes: NDArray[np.int64] = self._model.axes_of(is_image, grids).numpy()
        return axes

    def fields(self, shape: StepShape) -> dict[str, int]:
        """See `ModelState.fields`."""
        return {_IS_IMAGE: shape.tokens} | ({_AXES: 3 * shape.tokens} if self._model.has_axes else {})

    def write(self, step: StepInput, to: Mapping[str, NDArray[np.int32]]) -> None:
        """See `ModelState.write`."""
        to[_IS_IMAGE][:] = 0
        axes = to[_AXES].reshape(3, -1) if self._model.has_axes else None
        if axes is not None:
            axes[:, step.num_tokens :] = 0
            axes[:, : step.num_tokens] = step.positions + self._shifts[step.token_rows]
        for index, row in enumerate(step.rows.tolist()):
            if not self._media[row]:
                continue
            first, end = int(step.query_starts[index]), int(step.query_starts[index + 1])
            start = int(step.positions[first])
            self._place(self._media[row], start, first, end, to[_IS_IMAGE])
            if axes is not None:
                known = self._axes[row]
                assert known is not None
                part = known[:, start : start + end - first]
                axes[:, first : first + part.shape[1]] = part
            if start + end - first >= self._media[row][-1].end:
                self._media[row], self._axes[row] = [], None

    def _place(self, media: list[Placed], start: int, first: int, end: int, is_image: NDArray[np.int32]) -> None:
        """Fill in a request's tokens: the step's from `first` to before `end`, whose positions begin at `start`."""
        for one in media:
            for run in one.runs if one.overlaps(start, start + end - first) else ():
                low, high = max(run.start, start), min(run.end, start + end - first)
                if low < high:
                    to = slice(low - start + first, high - start + first)
                    of = slice(low - run.start + run.first, high - run.start + run.first)
                    self._rows[:, to] = self._seen(one.media)[:, of]
                    is_image[to] = 1

    def _seen(self, media: Media) -> Tensor:
        """What stands for an image."""
        if media.digest not in self._kept:
            rows = self._see(media)
            if rows.shape[1] != media.num_tokens:
                raise ValueError(
                    f"the model sees {rows.shape[1]} places in an image for which a prompt has {media.num_tokens}"
                )
            self._kept[media.digest] = rows
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > _MOST_KEPT_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(media.digest)
        return self._kept[media.digest]

    def _see(self, media: Media) -> Tensor:
        """What the model sees in an image. One that is too large for the memory is to blame itself: a smaller step
        would not help."""
        try:
            with named_faults():
                arrays = {name: torch.tensor(of.numpy(), device=self._device) for name, of in media.arrays.items()}
                return self._model.see(arrays)
        except WorkerOutOfMemoryError as error:
            raise RequestFaultError("an image is too large for the model's memory: send a smaller one") from error

    def inputs(self, step: StepInput, numbers: Mapping[str, Tensor]) -> dict[str, Any]:  # noqa: ARG002
        """See `ModelState.inputs`."""
        is_image = numbers[_IS_IMAGE] > 0
        axes = numbers[_AXES].view(3, -1).long() if self._model.has_axes else None
        return {"images": StepImages(is_image, self._rows[:, : len(is_image)], axes)}
