"""What steps look like from outside, for people who watch the batch: numbers and tenants, and nothing of any text."""

import msgspec


class RowReport(msgspec.Struct, array_like=True):
    """A running request."""

    number: int
    """The engine's own for the request, since clients choose request ids."""
    row: int
    tenant: int
    """Index into `StepReport.tenants`."""
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt's, those that were found in the prefix cache."""
    computed_tokens: int
    """Those of the next step included, if that is planned already."""
    output_tokens: int
    step_tokens: int
    """What the last step computed for it, drafts included; 0 if it had no part in it."""
    accepted_drafts: int
    """Since the last report."""


class TenantReport(msgspec.Struct, array_like=True):
    """What a tenant has in the engine."""

    name: str
    running: int
    waiting: int
    """Preempted ones included."""
    waiting_tokens: int
    """Of their prompts, and of what preempted ones have generated."""


class KVReport(msgspec.Struct):
    """The blocks of a KV group."""

    num_blocks: int
    num_used: int
    """Some of them may be shared."""
    num_cached: int
    stride: int
    """`states` tells of each block whose number is a multiple of this."""
    states: bytes
    """A byte for each: 0 free, 1 cached, 2 used, 3 shared by several requests."""


class StepCounts(msgspec.Struct):
    """What happened since the last report."""

    steps: int = 0
    seconds: float = 0.0
    """That these steps took."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    """That steps sampled: a few more than clients get, since a request may end while its next one is computed."""
    joined: int = 0
    """Requests that were given a row; one that was preempted joins again."""
    left: int = 0
    """Requests that ended."""
    preempted: int = 0
    drafted: int = 0
    accepted: int = 0
    """Drafts that were right."""

    def __add__(self, later: "StepCounts") -> "StepCounts":
        return StepCounts(**{name: getattr(self, name) + getattr(later, name) for name in self.__struct_fields__})


class StepReport(msgspec.Struct):
    """The batch after a step."""

    at: float
    """Seconds, on the clock of `time.monotonic()`."""
    max_rows: int
    """Most requests that can run."""
    block_size: int
    counts: StepCounts
    tenants: list[TenantReport]
    """Of all requests in the engine."""
    rows: list[RowReport]
    preempted: list[int]
    """Numbers of requests that ran, and wait to be computed again."""
    kv: list[KVReport]

    def behind(self, earlier: "StepReport") -> "StepReport":
        """The same, for those who were not told of an earlier one: with what happened since the report before that."""
        accepted = {row.number: row.accepted_drafts for row in earlier.rows}
        rows = [
            msgspec.structs.replace(row, accepted_drafts=row.accepted_drafts + accepted.get(row.number, 0))
            for row in self.rows
        ]
        return msgspec.structs.replace(self, counts=earlier.counts + self.counts, rows=rows)
