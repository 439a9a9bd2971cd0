"""The engine generates for a crowd of requests what transformers generates for each alone."""

import json
import random
import time
from collections.abc import Mapping
from concurrent.futures import wait
from pathlib import Path
from types import MappingProxyType

import msgspec
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel

from app.checkpoint.byte_alphabet import byte_alphabet
from app.core.sampling import SamplingParams
from app.core.step import KVGroup
from app.core.wire import GenerateCommand, Progress, RequestOutput
from app.engine.chunk_pacer import ChunkPacer
from app.engine.core import EngineCore
from app.engine.kv_cache import KVCache
from app.engine.scheduler import Scheduler
from app.errors import ModelError
from app.fairness.alone import Alone
from app.grammar import constraint
from app.grammar.masks import GrammarMasks
from app.models import reference
from app.settings import Settings, load_settings
from app.worker.factory import build_worker
from tests.models.families import BY_LENGTH, DECODER, GENERIC, REFUSED, SEEING, VOCAB_SIZE, write_checkpoint

BLOCK_SIZE = 8
NUM_BLOCKS = 34
NUM_WINDOW_BLOCKS = 7
MAX_MODEL_LEN = 200
TOLERANCE = 1e-4


def make_engine(folder: Path, settings: Settings, overlap: bool = True) -> EngineCore:
    """An engine with chunks of 24 tokens and memory for about two requests."""
    built = build_worker(settings, folder)
    pacer = ChunkPacer(1000.0, BLOCK_SIZE, 24)  # no step is so long: what is in one does not depend on the machine
    limits = built.limits
    groups = limits.groups
    if groups and all(group.window for group in groups):  # windows alone would hold all of them at once
        groups = tuple(KVGroup(NUM_WINDOW_BLOCKS, group.window) for group in groups)
    scheduler = Scheduler(
        KVCache(groups, BLOCK_SIZE, 24, states=limits.states, host=limits.host),
        pacer,
        Alone(pacer),
        max_num_seqs=8,
        max_num_batched_tokens=24,
        max_model_len=MAX_MODEL_LEN,
        chunked_prefill=limits.chunked_prefill,
    )
    core = EngineCore(scheduler, built.worker, overlap, limits.num_adapters)
    for name, adapter in settings.lora.items():
        core.load_adapter(name, adapter).result()
    return core


def tiny_settings(**options: object) -> Settings:
    return load_settings(
        dtype="float32",
        device="cpu",
        block_size=BLOCK_SIZE,
        num_kv_blocks=NUM_BLOCKS,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=8,
        **options,
    )


def run_crowd(
    core: EngineCore,
    requests: dict[str, tuple[list[int], SamplingParams]],
    seed: int = 0,
    adapters: Mapping[str, str] = MappingProxyType({}),
) -> tuple[dict[str, list[RequestOutput]], int]:
    """Submit requests at random steps; returns the outputs of each, and the number of preemptions.

    `adapters`: by request, for those that have one.
    """
    rng = random.Random(seed)
    waiting, preemptions = list(requests), 0
    outputs: dict[str, list[RequestOutput]] = {name: [] for name in requests}
    while core.admit_prepared() or waiting or core.has_work:
        if waiting and rng.random() < 0.4:
            name = waiting.pop(0)
            prompt, sampling = requests[name]
            core.add(
                GenerateCommand(
                    request_id=name,
                    prompt_token_ids=prompt,
                    sampling=sampling,
                    adapter=adapters.get(name, ""),
                    arrived_at=time.monotonic(),
                )
            )
        message = core.step()
        preemptions += message.stats.num_preemptions
        assert 0 <= message.stats.num_accepted_tokens <= message.stats.num_drafted_tokens
        for output in message.outputs:
            assert not output.error
            outputs[output.request_id].append(output)
    assert core.scheduler.kv.usage == 0
    return outputs, preemptions


def resume(core: EngineCore, name: str, request: tuple[list[int], SamplingParams], told: list[int]) -> None:
    """Submit a request again behind what it was told, as after an engine's death."""
    prompt, sampling = request
    core.add(
        GenerateCommand(
            request_id=name,
            prompt_token_ids=prompt,
            sampling=sampling,
            arrived_at=time.monotonic(),
            progress=Progress(token_ids=list(told)),
        )
    )


def make_requests(count: int, **options: object) -> dict[str, tuple[list[int], SamplingParams]]:
    """Random prompts around block borders; some continue a beginning that others share."""
    rng = random.Random(1)
    beginning = [rng.randrange(3, VOCAB_SIZE) for _ in range(40)]
    requests = {}
    for index in range(count):
        prompt = [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.choice([1, 2, 7, 8, 9, 33, 90]))]
        if index % 2 == 0:
            prompt = beginning + prompt
        max_tokens = rng.choice([1, 2, 17, 60])
        requests[str(index)] = (prompt, SamplingParams(max_tokens=max_tokens, seed=index, **options))  # type: ignore[arg-type]
    return requests


def tokens_of(outputs: list[RequestOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


@torch.inference_mode()
def check_logprobs(model: PreTrainedModel, prompt: list[int], outputs: list[RequestOutput]) -> None:
    """Log probabilities of prompt and output against one whole forward pass."""
    tokens = prompt + tokens_of(outputs)
    logits = model(torch.tensor([tokens])).logits[0].float()
    expected = torch.log_softmax(logits, -1)[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    entries = [entry for output in outputs for entry in output.prompt_logprobs]
    entries += [entry for output in outputs for entry in output.logprobs]
    assert [entry.token_ids[0] for entry in entries] == tokens[1:]
    found = torch.tensor([entry.logprobs[0] for entry in entries])
    assert (found - expected).abs().max() < TOLERANCE
    for entry in entries:  # greedy tokens stand first among the most probable
        assert entry.logprobs[1:] == sorted(entry.logprobs[1:], reverse=True)


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompt: list[int], said: list[int], max_tokens: int) -> list[int]:
    """transformers' most probable token after the prompt, and after each token that was said, in one forward pass.

    These are `max_tokens` tokens at most. They equal `said` only if transformers says the same, one after the other.
    """
    limit = min(max_tokens, MAX_MODEL_LEN - len(prompt))
    logits = model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 :]
    return logits.argmax(-1).tolist()[:limit]  # type: ignore[no-any-return]


def write_tokenizer(folder: Path) -> None:
    """Tokens that are bytes; the last one ends a text."""
    fast = Tokenizer(models.BPE(vocab={c: b for c, b in byte_alphabet().items() if b < VOCAB_SIZE}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    fast.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": VOCAB_SIZE - 1}))


@torch.inference_mode()
def greedy_matching(model: PreTrainedModel, folder: Path, prompt: list[int], grammar: str, most: int) -> list[int]:
    """transformers' greedy choice among the tokens that a grammar allows, up to the end of the text."""
    masks = GrammarMasks(folder, VOCAB_SIZE)
    masks.add(0, SamplingParams(max_tokens=most, seed=0, grammar=grammar), [])
    constrained = masks.constrained([0])
    output: list[int] = []
    while len(output) < most and VOCAB_SIZE - 1 not in output:
        logits = model(torch.tensor([prompt + output])).logits[0, -1]
        bits = np.unpackbits(masks.compute(constrained).words.view(np.uint8), bitorder="little")[:VOCAB_SIZE]
        output.append(int(logits.masked_fill(~torch.from_numpy(bits).bool(), float("-inf")).argmax()))
        constrained[0][1].accept(output[-1])
    return output


def check_grammars(core: EngineCore, model: PreTrainedModel, folder: Path, prompt_len: int, most: int) -> None:
    """Check requests with and without grammars, in a crowd that has too little memory."""
    asked = {
        "regex": constraint.regex("[a-f]{25,}!?"),
        "choice": constraint.choice(["alpha", "beta", "betb"]),
        "json": constraint.json_schema({"type": "array", "items": {"enum": [1, 23, "x"]}, "minItems": 9}),
        "none": "",
    }
    requests: dict[str, tuple[list[int], SamplingParams]] = {}
    for index, (name, grammar) in enumerate(asked.items()):
        sampling = SamplingParams(max_tokens=most, seed=1, temperature=0.0, grammar=grammar)
        if grammar:
            sampling = msgspec.structs.replace(sampling, stop_token_ids=frozenset([VOCAB_SIZE - 1]))
        requests[name] = [(7 * index + at) % 190 for at in range(prompt_len)], sampling
    # Kept from now on: requests that waited long for their grammars would find the others gone, and memory enough.
    wait([core.worker.compile_grammar(grammar) for grammar in asked.values() if grammar])
    outputs, preemptions = run_crowd(core, requests)
    assert preemptions > 0
    for name, (prompt, sampling) in requests.items():
        if sampling.grammar:
            assert tokens_of(outputs[name]) == greedy_matching(model, folder, prompt, sampling.grammar, most), name
        else:
            said = tokens_of(outputs[name])
            assert said == greedy(model, prompt, said, most)


@pytest.mark.parametrize("overlap", [True, False])
def test_grammars_constrain_those_who_ask(overlap: bool, tmp_path: Path) -> None:
    oracle = write_checkpoint("Llama", DECODER["Llama"], tmp_path)
    write_tokenizer(tmp_path)
    core = make_engine(tmp_path, tiny_settings(model_impl="decoder"), overlap)
    check_grammars(core, oracle, tmp_path, prompt_len=75, most=30)


@pytest.mark.parametrize(("family", "impl"), [*((f, "decoder") for f in DECODER), *((f, "generic") for f in GENERIC)])
def test_greedy_in_a_crowd_equals_transformers_alone(family: str, impl: str, tmp_path: Path) -> None:
    model = write_checkpoint(family, (DECODER | GENERIC)[family], tmp_path)
    core = make_engine(tmp_path, tiny_settings(model_impl=impl))
    requests = make_requests(14, temperature=0.0)
    if core.scheduler.kv.pools[0].num_blocks == NUM_WINDOW_BLOCKS:  # prompts are admitted only with room for windows
        growing = SamplingParams(max_tokens=60, seed=0, temperature=0.0)
        requests = {f"growing {token}": ([token], growing) for token in range(5, 9)} | requests
    # Logprobs of every third one: they must not change what it or its neighbours say.
    for name in list(requests)[1::3]:
        prompt, sampling = requests[name]
        wants = SamplingParams(max_tokens=sampling.max_tokens, seed=0, temperature=0.0, logprobs=2, prompt_logprobs=2)
        requests[name] = (prompt, wants)
    outputs, preemptions = run_crowd(core, requests)
    assert preemptions > 0, "the pool was not small enough to prove anything"
    assert any(o.num_cached_tokens for news in outputs.values() for o in news)
    for name, (prompt, sampling) in requests.items():
        said = tokens_of(outputs[name])
        assert said == greedy(model, prompt, said, sampling.max_tokens), name
        if sampling.logprobs is not None:
            check_logprobs(model, prompt, outputs[name])


@pytest.mark.parametrize("max_model_len", [64, 200])
@pytest.mark.parametrize("family", BY_LENGTH)
def test_rotary_embeddings_that_depend_on_length_are_chosen_once(
    family: str, max_model_len: int, tmp_path: Path
) -> None:
    """Up to 64 tokens transformers computes them in one way, and for longer requests in another."""
    model = write_checkpoint(family, BY_LENGTH[family], tmp_path)
    core = make_engine(tmp_path, tiny_settings().model_copy(update={"max_model_len": max_model_len}))
    sampling = SamplingParams(max_tokens=20, seed=0, temperature=0.0)
    lengths = {64: (1, 20, 44), 200: (1, 70, 100, 150)}[max_model_len]
    requests = {f"{length}": ([3 + at * length % 97 for at in range(length)], sampling) for length in lengths}
    outputs, _ = run_crowd(core, requests)
    model(torch.full((1, max_model_len), 5))  # transformers keeps "dynamic" frequencies as they are for these
    for name, (prompt, _) in requests.items():
        if len(prompt) > 1 or max_model_len == 64:
            said = tokens_of(outputs[name])
            assert said == greedy(model, prompt, said, 20), name


@pytest.mark.parametrize("family", SEEING)
def test_models_that_see_or_hear_are_served_for_text(family: str, tmp_path: Path) -> None:
    model = write_checkpoint(family, SEEING[family], tmp_path)
    core = make_engine(tmp_path, tiny_settings())
    requests = make_requests(4, temperature=0.0)
    outputs, _ = run_crowd(core, requests)
    for name, (prompt, sampling) in requests.items():
        said = tokens_of(outputs[name])
        assert said == greedy(model, prompt, said, sampling.max_tokens), name
    words = ("vision", "visual", "audio")
    assert not any(word in name for name, _ in core.worker.model.named_parameters() for word in words)  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", ["Llama", "Gemma3Text"])
def test_the_generic_path_runs_what_the_decoder_runs(family: str, tmp_path: Path) -> None:
    write_checkpoint(family, DECODER[family], tmp_path)
    requests = make_requests(6, temperature=0.0)
    texts = []
    for impl in ("decoder", "generic"):
        outputs, _ = run_crowd(make_engine(tmp_path, tiny_settings(model_impl=impl)), requests)
        texts.append({name: tokens_of(news) for name, news in outputs.items()})
    assert texts[0] == texts[1]


@pytest.mark.parametrize("overlap", [True, False])
def test_a_seed_gives_the_same_text_alone_in_a_crowd_and_after_preemption(overlap: bool, tmp_path: Path) -> None:
    write_checkpoint("Llama", DECODER["Llama"], tmp_path)
    requests = make_requests(14)
    varied = [{"top_k": 20}, {"top_p": 0.8}, {"min_p": 0.05}, {}, {"frequency_penalty": 0.7, "repetition_penalty": 1.2}]
    for index, (name, (prompt, sampling)) in enumerate(list(requests.items())):
        options = varied[index % len(varied)]
        requests[name] = (prompt, SamplingParams(max_tokens=sampling.max_tokens, seed=index, **options))  # type: ignore[arg-type]
    core = make_engine(tmp_path, tiny_settings(), overlap)
    crowd, preemptions = run_crowd(core, requests)
    assert preemptions > 0
    other = make_engine(tmp_path, tiny_settings())
    for name, request in requests.items():
        alone, _ = run_crowd(other, {name: request})
        assert tokens_of(alone[name]) == tokens_of(crowd[name]), name


@pytest.mark.parametrize("family", REFUSED)
def test_unsupported_kinds_are_refused_by_name(family: str, tmp_path: Path) -> None:
    options, words = REFUSED[family]
    write_checkpoint(family, options, tmp_path)
    with pytest.raises(ModelError, match=words) as raised:
        build_worker(tiny_settings(), tmp_path)
    assert len(str(raised.value)) < 250
    assert "Error" not in str(raised.value)


def test_the_embedded_model_on_real_prompts(embedded_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer to a question is right and ends as the file says."""
    from transformers import AutoTokenizer

    folder = embedded_model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # transformers takes ten seconds to read such a file. That it reads the same tensors is tested in test_gguf.
    monkeypatch.setattr(reference, "transformers_reads", lambda _: False)
    model = reference.transformers_model(folder)
    core = make_engine(folder, tiny_settings(cpu_threads=2, quantization="none"))
    prompts = ["The capital of France is", "def fibonacci(n):\n", "Die Hauptstadt von"]
    requests = {
        prompt: (tokenizer(prompt).input_ids, SamplingParams(max_tokens=24, seed=0, temperature=0.0, logprobs=0))
        for prompt in prompts
    }
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True)["input_ids"]
    end = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    stops = frozenset([end] if isinstance(end, int) else end)
    requests["question"] = ids, SamplingParams(max_tokens=24, seed=0, temperature=0.0, stop_token_ids=stops)
    outputs, _ = run_crowd(core, requests)
    for prompt, (ids, _) in requests.items():
        said = tokens_of(outputs[prompt])
        assert said == greedy(model, ids, said, 24)[: len(said)]
        assert len(said) == 24 or prompt == "question"
    assert "Paris" in tokenizer.decode(tokens_of(outputs[prompts[0]]))
    answer = tokenizer.decode(tokens_of(outputs["question"]))
    assert answer == "The capital of France is Paris.<|im_end|>"
