"""lm-eval's local-completions scores texts as its own hf model does, by echoed log probabilities."""

import os

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalCompletionsAPI

TOLERANCE = 1e-3
TEXTS = [
    ("The capital of France is", " Paris."),
    ("The capital of France is", " a banana, they say, and nobody has ever doubted it."),
    ("Question: what is 2 + 2?\nAnswer:", " 4"),
    ("Question: what is 2 + 2?\nAnswer:", " 5"),
    ("Im Jahr 1989 fiel", " die Mauer in Berlin."),
    ("", "Once upon a time there was a small house by the river."),
    ("def add(a, b):\n", "    return a + b\n"),
    ("It rained. " * 60, "It rained. It rained."),
]

requests = [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i) for i, pair in enumerate(TEXTS)]
folder = os.environ["MODEL_FOLDER"]
served = LocalCompletionsAPI(
    base_url=f"{os.environ['BASE_URL']}/completions",
    model=os.environ["MODEL"],
    tokenizer=folder,
    tokenizer_backend="huggingface",
    batch_size=4,
    max_retries=1,
)
own = HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=1)

for text, (got, got_greedy), (want, want_greedy) in zip(
    TEXTS, served.loglikelihood(requests), own.loglikelihood(requests), strict=True
):
    print(f"{got:12.5f} {want:12.5f} {got_greedy!s:5} {text}")
    assert abs(got - want) < TOLERANCE
    assert got_greedy == want_greedy
