"""How long the parts of an answer took, in the form of llama.cpp's server, which chat clients show.

See "Result JSON" in llama.cpp's tools/server/README.md.
"""

from msgspec import UNSET, UnsetType

from ..edge.answer import AnswerBody
from ..edge.request_log import Usage


class Timings(AnswerBody, kw_only=True):
    """Of a call. Several choices count together."""

    cache_n: int
    """Tokens of the prompt that were found in the prefix cache."""
    prompt_n: int
    """The others, which were computed."""
    prompt_ms: float
    """From when the engine began with the prompt to the first token; of the last one, if there are several prompts."""
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    """Generated tokens."""
    predicted_ms: float
    """From the first token to the last."""
    predicted_per_token_ms: float
    """Of those behind the first, which comes with the prompt."""
    predicted_per_second: float
    draft_n: int | UnsetType = UNSET
    """Drafts, if there were any; see `app.engine.drafts`."""
    draft_n_accepted: int | UnsetType = UNSET

    @classmethod
    def of(cls, usage: Usage) -> "Timings":
        """What is known when all choices have ended."""
        computed = usage.prompt_tokens - usage.cached_tokens
        prompt_ms = 1000 * max(0.0, usage.prompts_ended_at - usage.scheduled_at)
        predicted_ms = 1000 * max(0.0, usage.last_token_at - usage.first_token_at)
        later = max(0, usage.completion_tokens - usage.num_first_tokens)
        return cls(
            cache_n=usage.cached_tokens,
            prompt_n=computed,
            prompt_ms=_rounded(prompt_ms),
            prompt_per_token_ms=_ratio(prompt_ms, computed),
            prompt_per_second=_ratio(1000 * computed, prompt_ms),
            predicted_n=usage.completion_tokens,
            predicted_ms=_rounded(predicted_ms),
            predicted_per_token_ms=_ratio(predicted_ms, later),
            predicted_per_second=_ratio(1000 * later, predicted_ms),
            draft_n=usage.drafted_tokens or UNSET,
            draft_n_accepted=usage.accepted_tokens if usage.drafted_tokens else UNSET,
        )


def _ratio(number: float, by: float) -> float:
    return _rounded(number / by) if by > 0 else 0.0


def _rounded(number: float) -> float:
    return round(number, 3)
