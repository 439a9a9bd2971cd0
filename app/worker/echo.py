"""A worker without a model: it repeats the prompt.

For measuring the front end and the scheduler alone, and for testing clients without weights. Torch is not needed.
"""

from concurrent.futures import Future

from app.core.step import NOT_SAMPLED, ModelRunnerOutput, SchedulerOutput


class EchoWorker:
    """The token at a position is the prompt's token as many positions before; over and over."""

    def __init__(self, max_num_seqs: int) -> None:
        self._prompt: list[list[int]] = [[]] * max_num_seqs
        self._num_known = [0] * max_num_seqs
        self._num_computed = [0] * max_num_seqs

    def submit(self, step: SchedulerOutput) -> Future[ModelRunnerOutput]:
        """See `app.core.step.Worker`."""
        for request in step.new_requests:
            self._prompt[request.row] = request.token_ids[: request.num_prompt_tokens]
            self._num_known[request.row] = len(request.token_ids)
            self._num_computed[request.row] = request.num_computed_tokens
        tokens = []
        for row, count in zip(step.rows, step.num_scheduled_tokens, strict=True):
            position = self._num_computed[row] = self._num_computed[row] + count
            prompt = self._prompt[row]
            tokens.append(prompt[position % len(prompt)] if position >= self._num_known[row] else NOT_SAMPLED)
        done: Future[ModelRunnerOutput] = Future()
        done.set_result(ModelRunnerOutput(tokens))
        return done
