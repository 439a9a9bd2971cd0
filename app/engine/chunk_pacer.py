"""The number of prompt tokens that a step may compute while other requests wait for their next token."""

MARGIN = 0.7
"""Fraction of the allowed pause that is planned for; the rest absorbs errors of the estimate."""
HALF_LIFE = 256
"""Prompt tokens after which a measurement counts half: a long prompt slows down as its context grows."""
ADAPT = 0.2
"""Weight of the newest step in the time of decodes alone."""


class ChunkPacer:
    """Sizes prefill chunks by measured time, so that the pause between tokens stays under `max_itl`.

    A step's time is modelled as the time of a step of decodes alone, plus prompt tokens over a rate. Both are
    measured all the time, and noisy: the rate is a ratio of sums, so that a short chunk, whose time says little
    about a token's, counts little.
    """

    def __init__(self, max_itl: float, min_tokens: int, max_tokens: int) -> None:
        """`max_itl` in seconds; a chunk is `min_tokens` at least (one block) and `max_tokens` at most."""
        self.target = max_itl * MARGIN
        self.min_tokens = min_tokens
        self.max_tokens = max_tokens
        self._decode_seconds = 0.0
        self._prompt_seconds = 0.0  # decayed sums, of the same steps
        self._prompt_tokens = 0.0

    def prompt_tokens(self, num_decodes: int) -> int:
        """Most prompt tokens for the next step, beside that many decodes."""
        if num_decodes == 0:
            return self.max_tokens
        # Never more than twice the tokens that the estimate is based on, so that the first steps grow slowly.
        most = min(2 * self._prompt_tokens, self.max_tokens)
        if self._prompt_seconds > 0:
            left = self.target - self._decode_seconds
            most = min(most, left * self._prompt_tokens / self._prompt_seconds)
        return max(self.min_tokens, int(most))

    def seconds(self, num_decodes: int, prompt_tokens: int) -> float:
        """What a step is expected to take; little for the first ones."""
        seconds = self._decode_seconds if num_decodes else 0.0
        if self._prompt_tokens > 0:
            seconds += prompt_tokens * self._prompt_seconds / self._prompt_tokens
        return seconds

    def observe(self, num_decodes: int, prompt_tokens: int, seconds: float) -> None:
        """Learn from a finished step."""
        if prompt_tokens == 0 or (num_decodes and seconds < self._decode_seconds):
            change = seconds - self._decode_seconds
            self._decode_seconds += change if self._decode_seconds == 0.0 else ADAPT * change
        if prompt_tokens == 0:
            return
        # A step of prompt alone still reads all weights, as a decode does: its whole time counts as the prompt's,
        # which errs on the careful side.
        base = self._decode_seconds if num_decodes else 0.0
        keep = 0.5 ** (prompt_tokens / HALF_LIFE)
        self._prompt_seconds = keep * self._prompt_seconds + max(seconds - base, 0.0)
        self._prompt_tokens = keep * self._prompt_tokens + prompt_tokens
