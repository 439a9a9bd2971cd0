"""How much prompt a step may compute while other requests wait for their next token."""

MARGIN = 0.85
"""Share of the allowed pause that is planned for; the rest is for what the estimate misses."""
ADAPT = 0.4
"""Weight of the newest step in the estimates: a long prompt slows down as its context grows, so follow quickly."""


class ChunkPacer:
    """Sizes prefill chunks by measured time, so that the pause between tokens stays under `max_itl`.

    A step's time is modelled as the time of a step of decodes alone, plus prompt tokens over a rate.
    """

    def __init__(self, max_itl: float, min_tokens: int, max_tokens: int) -> None:
        """`max_itl` in seconds; a chunk is `min_tokens` at least (one block) and `max_tokens` at most."""
        self._target = max_itl * MARGIN
        self._min_tokens = min_tokens
        self._max_tokens = max_tokens
        self._decode_seconds = 0.0
        self._seconds_per_token = 0.0

    def prompt_tokens(self, num_decodes: int) -> int:
        """Most prompt tokens for the next step, beside that many decodes."""
        if num_decodes == 0:
            return self._max_tokens
        if self._seconds_per_token == 0.0:  # nothing measured yet
            return self._min_tokens
        tokens = int((self._target - self._decode_seconds) / self._seconds_per_token)
        return max(self._min_tokens, min(tokens, self._max_tokens))

    def observe(self, num_decodes: int, prompt_tokens: int, seconds: float) -> None:
        """Learn from a finished step."""
        if prompt_tokens == 0:
            self._decode_seconds = _follow(self._decode_seconds, seconds)
            return
        # A step of prompt alone still reads all weights, as a decode does: its whole time counts as the prompt's,
        # which errs on the careful side.
        base = self._decode_seconds if num_decodes else 0.0
        self._seconds_per_token = _follow(self._seconds_per_token, max(seconds - base, 0.0) / prompt_tokens)


def _follow(estimate: float, value: float) -> float:
    return value if estimate == 0.0 else estimate + ADAPT * (value - estimate)
