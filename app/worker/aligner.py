"""Lays texts along the sounds that they were heard in, for requests that ask for it."""

from typing import TYPE_CHECKING

from torch import Tensor

from ..core.step import NewRequest, SchedulerOutput

if TYPE_CHECKING:  # importing transformers takes seconds
    from ..models.encoder_decoder import EncoderDecoder


class Aligner:
    """The pass is made in the step in which a request gets its row, beside the step's own: the request ends with it."""

    def __init__(self, model: "EncoderDecoder") -> None:
        self._model = model

    def vectors(self, step: SchedulerOutput) -> dict[int, Tensor]:
        """By index into the step's rows: (tokens * places,), see `Looks.smoothed`."""
        places = {row: index for index, row in enumerate(step.rows)}
        asking = [request for request in step.new_requests if request.sampling.alignment is not None]
        return {places[request.row]: self._vector(request) for request in asking}

    def _vector(self, request: NewRequest) -> Tensor:
        source, asked = request.extras.source, request.sampling.alignment
        assert source is not None
        assert asked is not None
        return self._model.align(source.numpy(), request.token_ids, asked.first, asked.num_places).flatten()
