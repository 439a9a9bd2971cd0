"""How a request wants its tokens to be chosen."""

import msgspec


class TimestampRules(msgspec.Struct, frozen=True):
    """How Whisper's texts say when they were spoken: with tokens for times, from <|0.00|> on (Radford et al., 2022)."""

    first: int
    """The token <|0.00|>. All behind it are times, in steps of 0.02 seconds."""
    end: int
    """The token that ends a text, which all ordinary tokens stand before."""
    no_timestamps: int
    """The token <|notimestamps|>, which is not generated."""
    max_initial: int | None = None
    """A text begins at most so many steps after 0.00; None is no bound."""


class TokenRules(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's own configuration forbids its texts, prompts of decoders among them."""

    suppressed: list[int] = []
    """Tokens that are never generated."""
    suppressed_first: list[int] = []
    """Tokens that are not generated as the first one."""
    only_first: list[int] = []
    """If there are any, the first token is one of these."""
    banned: list[list[int]] = []
    """Sequences of tokens that are never completed."""
    no_repeat: int = 0
    """No sequence of so many tokens comes twice; 0 is off."""
    timestamps: TimestampRules | None = None
    in_logprobs: bool = False
    """Whether reported log probabilities are among the tokens that all of this leaves, instead of the model's own."""


class Alignment(msgspec.Struct, frozen=True):
    """Asks where in a sound its text is, which is the prompt of the request. No token is generated."""

    first: int
    """The first token of the text, behind what the decoder is told."""
    num_places: int
    """So many of the encoder's tokens are sound."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that turns logits into the next token, and says when to stop.

    The API side fills in every default: the engine never guesses. In particular `seed` is always set
    (drawn at random for a request that names none), so that a request can be replayed exactly.

    Sampling is stateless: the random number for a token is a function of (seed, position) alone.
    """

    max_tokens: int
    """Most tokens to generate; at least 1, or 0 to only process the prompt (for its logprobs)."""
    seed: int
    """0 to 2**63 - 1."""
    min_tokens: int = 0
    """While fewer were generated, `stop_token_ids` cannot be sampled."""
    temperature: float = 1.0
    """0 is greedy: the most probable token, no randomness."""
    top_k: int = 0
    """Sample among the k most probable tokens; 0 is off."""
    top_p: float = 1.0
    """Sample among the fewest tokens that together have this probability."""
    min_p: float = 0.0
    """Sample among tokens with at least this fraction of the most probable token's probability."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of each token that was generated before."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once for each time it was generated before."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in the prompt or output (CTRL, Keskar et al. 2019)."""
    logit_bias: dict[int, float] = msgspec.field(default_factory=dict)
    """Token id to what is added to its logit."""
    stop_token_ids: frozenset[int] = frozenset()
    """Tokens that end the request, the model's end-of-sequence tokens among them unless these are ignored."""
    logprobs: int | None = None
    """How many of the most probable tokens to report beside each sampled one; None reports nothing."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens."""
    grammar: str = ""
    """What the output must match, as llguidance writes a grammar; empty is any text."""
    rules: TokenRules | None = None
    """Of an encoder-decoder."""
    alignment: Alignment | None = None
    """Of a model that hears."""

    @property
    def for_drafts(self) -> "SamplingParams":
        """By what guesses of tokens are drawn: without grammar and penalties, since who guesses would have to forget
        what wrong guesses change of them."""
        return SamplingParams(
            max_tokens=self.max_tokens,
            seed=self.seed,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            logit_bias=self.logit_bias,
        )


class Logprobs(msgspec.Struct, array_like=True):
    """Log probabilities at one position: first of the token that stands there, then of the most probable ones."""

    token_ids: list[int]
    logprobs: list[float]
