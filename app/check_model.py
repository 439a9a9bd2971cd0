"""Whether and how a model would run here, and whether it computes what transformers computes."""

import time
from pathlib import Path

import torch
from rich.console import Console

from app.core.messages import GenerateCommand
from app.core.sampling import SamplingParams
from app.engine.build import build_engine
from app.engine.core import EngineCore
from app.errors import StartupError
from app.hub.source import find_model
from app.settings import load_settings

_NUM_TOKENS = 48
_TOLERANCE = 1e-3
"""Largest difference of log probabilities in float32 that rounding explains, through dozens of layers."""


def check(model: str) -> bool:
    """Print how a model would run, and compare its logits with transformers'; whether they agree."""
    console = Console()
    try:
        folder = find_model(model)
        from transformers.utils.logging import disable_progress_bar  # takes seconds: once there is a model

        disable_progress_bar()  # type: ignore[no-untyped-call]
        # Chunks of one block, in float32: paging, chunking and the cache all take part, and rounding does not.
        settings = load_settings(model=model, dtype="float32", device="cpu", max_model_len=_NUM_TOKENS + 2)
        settings = settings.model_copy(update={"max_num_batched_tokens": 16, "max_num_seqs": 4})
        core, ready = build_engine(settings, folder)
    except StartupError as error:
        console.print(f"[red]{model} cannot run:[/red] {error}")
        return False
    console.print(f"[bold]{model}[/bold]: {ready.architecture}, run by Paceline's {ready.model_impl} path")
    for impl in _paths(ready.model_impl):
        if impl != ready.model_impl:
            core, ready = build_engine(settings.model_copy(update={"model_impl": impl}), folder)
        difference = _largest_difference(core, folder, ready.vocab_size)
        agrees = difference < _TOLERANCE
        verdict = "[green]agrees[/green]" if agrees else "[red]DIFFERS[/red]"
        console.print(f"{impl}: {verdict} with transformers; log probabilities differ by {difference:.1e} at most")
        if not agrees:
            return False
    return True


def _paths(default: str) -> list[str]:
    """What can run the model: the generic path takes whatever the decoder takes."""
    return ["decoder", "generic"] if default == "decoder" else ["generic"]


def _largest_difference(core: EngineCore, folder: Path, vocab_size: int) -> float:
    """Between the log probabilities that both give the tokens of a random prompt."""
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(vocab_size, (_NUM_TOKENS,), generator=generator).tolist()
    sampling = SamplingParams(max_tokens=1, seed=0, temperature=0.0, prompt_logprobs=0)
    core.add(
        GenerateCommand(request_id="check", prompt_token_ids=prompt, sampling=sampling, arrived_at=time.monotonic())
    )
    ours = []
    while core.has_work:
        for output in core.step().outputs:
            if output.error:
                raise StartupError(output.error)
            ours += [entry.logprobs[0] for entry in output.prompt_logprobs]
    return float((torch.tensor(ours) - _reference(folder, prompt)).abs().max())


@torch.inference_mode()
def _reference(folder: Path, prompt: list[int]) -> torch.Tensor:
    """(tokens - 1,): what transformers' own model says of each token but the first."""
    from transformers import AutoModelForCausalLM

    # Eager: some of transformers' faster attentions leave out what a model has, such as soft-capping.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    logits = model(torch.tensor([prompt])).logits[0, :-1].float()
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
