"""How a step's tokens are divided between tenants."""

from collections import Counter

from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.core.request import Request
from app.core.sampling import SamplingParams
from app.fairness.demand import StepDemand

WEIGHTS = {"a": 1.0, "b": 2.5, "c": 0.5, "d": 1.0}


def running(tenant: str, num_missing: int) -> Request:
    sampling = SamplingParams(max_tokens=10, seed=0)
    return Request("", [1] * num_missing, num_missing, sampling, arrived_at=0.0, tenant=tenant, weight=WEIGHTS[tenant])


groups = st.tuples(st.sampled_from("abcd"), st.just(1) | st.integers(2, 300), st.integers(1, 60))
"""Tenant, tokens that a request is behind, and number of such requests."""


@given(st.lists(groups, max_size=10), st.integers(0, 200))
@settings(max_examples=500)
@example([("a", 1, 60), ("b", 300, 1), ("c", 300, 1), ("d", 300, 1)], 16)
def test_no_tenant_has_more_for_its_weight_than_one_that_wants_more(
    groups: list[tuple[str, int, int]], prompt_budget: int
) -> None:
    """Max-min fairness, but for whole tokens, for decodes, and for one token that every prompt gets."""
    decodes, prompts = Counter[str](), Counter[str]()
    requests = [running(tenant, num_missing) for tenant, num_missing, count in groups for _ in range(count)]
    for request in requests:
        (decodes if request.num_missing == 1 else prompts)[request.tenant] += request.num_missing
    allowances = StepDemand(requests).allowances(prompt_budget)
    if len(prompts) < 2:
        assert allowances == {}
        return
    assert allowances.keys() == prompts.keys()
    # Decodes are computed in any case, so that what is given to prompts has to fit next to them.
    assert sum(allowances.values()) <= prompt_budget + len(prompts)
    for one in prompts:
        assert 1 <= allowances[one] <= prompts[one]
        for other in prompts:
            if allowances[one] > 1 and allowances[other] < prompts[other]:
                has, others = ((decodes[name] + allowances[name]) / WEIGHTS[name] for name in (one, other))
                assert has - others <= 1 / WEIGHTS[one] + 1 / WEIGHTS[other]
    if prompts.total() > prompt_budget:  # and nothing is left over
        assert sum(allowances.values()) >= prompt_budget
