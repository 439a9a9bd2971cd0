"""What the configuration of an encoder-decoder forbids its texts. Only plain arithmetic on one row, so that a text does
not depend on its neighbours."""

import torch
from torch import Tensor

from ...core.sampling import TimestampRules, TokenRules

_NEVER = float("-inf")


class RowRules:
    """The rules of one row, and its text so far, the decoder's prompt included."""

    def __init__(self, rules: TokenRules, text: list[int], num_prompt_tokens: int) -> None:
        self.text = text
        self._rules = rules
        self._num_prompt_tokens = num_prompt_tokens
        self._suppressed = torch.tensor(rules.suppressed, dtype=torch.int64)
        self._suppressed_first = torch.tensor(rules.suppressed_first, dtype=torch.int64)
        self._only_first = torch.tensor(rules.only_first, dtype=torch.int64)

    def apply(self, logits: Tensor) -> None:
        """Take away from logits (vocab,), in place, what must not follow the text."""
        rules, text = self._rules, self.text
        logits[self._suppressed] = _NEVER
        if len(text) == self._num_prompt_tokens:
            logits[self._suppressed_first] = _NEVER
            if len(self._only_first):
                allowed = logits[self._only_first]
                logits.fill_(_NEVER)
                logits[self._only_first] = allowed
        for *beginning, last in rules.banned:
            if not beginning or text[-len(beginning) :] == beginning:
                logits[last] = _NEVER
        if rules.no_repeat:
            logits[self._repeating(rules.no_repeat)] = _NEVER
        if rules.timestamps is not None:
            _apply_timestamps(rules.timestamps, text[self._num_prompt_tokens :], logits)

    def _repeating(self, length: int) -> list[int]:
        """Tokens with which the last `length` tokens would be there for the second time."""
        text = self.text
        last = text[len(text) - length + 1 :]
        return [
            text[at + length - 1] for at in range(len(text) - length + 1) if text[at : at + length - 1] == last
        ]  # of text itself, when `length` is 1


def _apply_timestamps(rules: TimestampRules, output: list[int], logits: Tensor) -> None:
    """Whisper's rules for times, as openai/whisper has them in ApplyTimestampRules.

    Times come in pairs, the end of a piece of text and the beginning of the next, except at the beginning and before
    the end; they do not go back; and where all times together are more probable than any token of text, a time comes.
    """
    first = rules.first
    logits[rules.no_timestamps] = _NEVER
    is_time = [token >= first for token in output]
    last_is, one_before_is = is_time[-1:] == [True], len(output) < 2 or is_time[-2]
    if last_is and one_before_is:  # a text has to follow
        logits[first:] = _NEVER
    elif last_is:  # another time has to follow, or the end
        logits[: rules.end] = _NEVER
    if times := [token for token in output if token >= first]:
        # A time may come twice only as an end and a beginning.
        lowest = times[-1] if last_is and not one_before_is else times[-1] + 1
        logits[first:lowest] = _NEVER
    if not output:
        logits[:first] = _NEVER
        if rules.max_initial is not None:
            logits[first + rules.max_initial + 1 :] = _NEVER
    if torch.logsumexp(logits[first:], 0) > logits[:first].max():
        logits[:first] = _NEVER
