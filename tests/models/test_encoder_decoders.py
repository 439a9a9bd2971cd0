"""Encoder-decoders in a crowd give what transformers gives for each input alone."""

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, PreTrainedModel
from transformers.generation.logits_process import (
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)

from app import check_model
from app.checkpoint.folder import ModelFolder
from app.core.media import Media
from app.core.sampling import SamplingParams, TimestampRules, TokenRules
from app.core.sources import sound_source, text_source
from app.core.wire import GenerateCommand, Progress, RequestOutput
from app.engine.build import build_engine
from app.engine.core import EngineCore
from app.errors import ModelError, StartupError
from app.settings import load_settings
from tests.models.encoder_decoders import FAMILIES, WHISPER, write_encoder_decoder
from tests.models.families import VOCAB_SIZE
from tests.models.test_oracle import write_tokenizer

MAX_LEN = 64
TOLERANCE = 1e-5


def make_engine(folder: Path, **options: object) -> EngineCore:
    """An engine with steps of up to 24 tokens, and memory for few requests."""
    settings = load_settings(
        model=str(folder),
        dtype="float32",
        device="cpu",
        block_size=4,
        max_model_len=MAX_LEN,
        max_num_seqs=6,
        max_num_batched_tokens=24,
        **{"num_kv_blocks": 30, **options},
    )
    return build_engine(settings, folder)[0]


def make_source(family: str, index: int) -> Media:
    """Inputs of all lengths; some are the same."""
    draw = np.random.default_rng(index)
    if family == "Whisper":
        frames = 2 * WHISPER["max_source_positions"]
        return sound_source(draw.standard_normal((WHISPER["num_mel_bins"], frames)).astype(np.float32), frames // 2)
    return text_source(draw.integers(3, VOCAB_SIZE, [5, 64, 1, 17, 30][index % 5]).tolist())


def arguments(source: Media) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array.numpy())[None] for name, array in source.arrays.items()}


class Crowd:
    """Requests that come at random steps."""

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self.outputs: dict[str, list[RequestOutput]] = {}
        self.preemptions = 0

    def run(self, commands: list[GenerateCommand]) -> None:
        rng, waiting = random.Random(0), list(commands)
        while waiting or self.core.has_work:
            if waiting and rng.random() < 0.5:
                self.core.add(waiting.pop(0))
            message = self.core.step()
            assert message.stats is not None
            self.preemptions += message.stats.num_preemptions
            for output in message.outputs:
                assert not output.error, output.error
                self.outputs.setdefault(output.request_id, []).append(output)
        kv = self.core.scheduler.kv
        assert kv.usage == 0
        assert kv.cross is not None
        assert kv.cross.pool.num_used == 0

    def tokens(self, name: str) -> list[int]:
        return [token for output in self.outputs[name] for token in output.token_ids]

    def logprobs(self, name: str) -> list[float]:
        return [entry.logprobs[0] for output in self.outputs[name] for entry in output.logprobs]


def command(name: str, prompt: list[int], source: Media, **sampling: Any) -> GenerateCommand:
    return GenerateCommand(
        request_id=name,
        prompt_token_ids=prompt,
        source=source,
        sampling=SamplingParams(**{"max_tokens": 16, "seed": 7, "logprobs": 0, **sampling}),
        arrived_at=time.monotonic(),
    )


@torch.inference_mode()
def check(model: PreTrainedModel, prompt: list[int], source: Media, said: list[int], logprobs: list[float]) -> None:
    """Log probabilities of a text against one whole forward pass."""
    logits = model(**arguments(source), decoder_input_ids=torch.tensor([prompt + said])).logits[0]
    expected = torch.log_softmax(logits.float(), -1)[len(prompt) - 1 : -1].gather(1, torch.tensor(said)[:, None])[:, 0]
    assert (torch.tensor(logprobs) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize(("family", "backend"), [*((name, "cpu") for name in FAMILIES), ("T5", "torch")])
def test_a_crowd_equals_transformers_alone(family: str, backend: str, tmp_path: Path) -> None:
    """Greedy and sampled texts, with long and short beginnings of the decoder's, which come in chunks."""
    model = write_encoder_decoder(family, tmp_path)
    core = make_engine(tmp_path, attention_backend=backend)
    crowd, commands = Crowd(core), []
    start = model.config.decoder_start_token_id
    for index in range(9):
        prompt = [start, *(3 + (index * 7 + at) % 190 for at in range([0, 1, 33][index % 3]))]
        name = f"{index}"
        commands.append(command(name, prompt, make_source(family, index % 6), temperature=float(index % 2), seed=index))
    crowd.run(commands)
    # All sounds are of one length, and the memory for what encoders have read lets few in.
    assert crowd.preemptions > 0 or family == "Whisper"
    for index, each in enumerate(commands):
        assert each.source is not None
        said = crowd.tokens(each.request_id)
        check(model, each.prompt_token_ids, each.source, said, crowd.logprobs(each.request_id))
        if index % 4 == 0:
            generated = GenerationMixin.generate(  # Whisper's own does more
                model,
                **arguments(each.source),
                decoder_input_ids=torch.tensor([each.prompt_token_ids]),
                max_new_tokens=16,
                do_sample=False,
                forced_eos_token_id=None,
                eos_token_id=VOCAB_SIZE,  # which is no token, so that all texts are of one length
                use_cache=False,  # as it counts the encoder's layers, of which these models have another number
            )
            assert generated[0].tolist()[-16:] == said


def test_a_text_is_the_same_alone_in_a_crowd_and_after_an_engines_death(tmp_path: Path) -> None:
    """And requests of one input share what the encoder has read, which it reads once."""
    write_encoder_decoder("Bart", tmp_path)
    commands = [command(f"{index}", [2], make_source("Bart", index // 3), seed=index) for index in range(9)]
    core, other = make_engine(tmp_path, num_kv_blocks=80), make_engine(tmp_path)
    inputs_read, encode = [], core.worker.model.encode  # type: ignore[attr-defined]

    def counted(inputs: Any) -> Any:
        inputs_read.extend(inputs)
        return encode(inputs)

    core.worker.model.encode = counted  # type: ignore[attr-defined]
    crowd = Crowd(core)
    crowd.run(commands)
    assert len(inputs_read) == 3
    assert crowd.tokens("0") != crowd.tokens("1")
    for each in commands[::4]:
        alone, name = Crowd(other), each.request_id
        each.progress = Progress(token_ids=crowd.tokens(name)[:5])
        alone.run([each])
        assert alone.tokens(name) == crowd.tokens(name)[5:]
        each.progress = None
        alone.outputs.clear()
        alone.run([each])
        assert alone.tokens(name) == crowd.tokens(name)


_RULES = {
    "suppress_tokens": [5, 6],
    "begin_suppress_tokens": [7, 8],
    "bad_words_ids": [[9], [10, 11]],
    "no_repeat_ngram_size": 2,
    "min_length": 9,
    "forced_bos_token_id": 12,
}


@torch.inference_mode()
def test_texts_keep_to_the_rules_of_generation_config(tmp_path: Path) -> None:
    """Each rule forbids what transformers would say without it."""
    model = write_encoder_decoder("Marian", tmp_path)
    source, start = make_source("Marian", 1), [1, 12]
    first, second = (model(**arguments(source), decoder_input_ids=torch.tensor([prompt])).logits[0, -1].topk(20).indices
                     for prompt in ([1, 12], [1, 12, 20]))  # fmt: skip
    rules = _RULES | {
        "suppress_tokens": first[:2].tolist(),
        "begin_suppress_tokens": first[2:4].tolist(),
        "bad_words_ids": [[int(first[4])], [int(first[5]), int(second[0])]],
    }
    model = write_encoder_decoder("Marian", tmp_path, **rules)
    described = ModelFolder(tmp_path).encoder_decoder
    assert described is not None
    assert list(described.beginning) == start
    crowd = Crowd(make_engine(tmp_path))
    stop = int(first[6])
    crowd.run(
        [
            command("0", start, source, temperature=0.0, rules=described.rules),
            command("1", start, make_source("Marian", 2), temperature=0.0),
            command(
                "2",
                start,
                source,
                temperature=0.0,
                rules=described.rules,
                min_tokens=described.min_tokens,
                stop_token_ids=frozenset([stop]),
            ),
        ]
    )
    for name, eos in (("0", VOCAB_SIZE), ("2", stop)):
        options = {"max_new_tokens": 17, "do_sample": False, "use_cache": False, "forced_eos_token_id": None}
        expected = GenerationMixin.generate(model, **arguments(source), **options, eos_token_id=eos, num_beams=1)
        assert crowd.tokens(name) == expected[0].tolist()[2:]
    assert len(crowd.tokens("2")) >= described.min_tokens == 7


def test_whispers_times_follow_its_rules(tmp_path: Path) -> None:
    """As in transformers: times in pairs, that do not go back, and wherever they are more probable than text."""
    model = write_encoder_decoder("Whisper", tmp_path)
    first = VOCAB_SIZE - 60
    rules = TokenRules(timestamps=TimestampRules(first, 140, first - 1, 20), suppressed=[3], suppressed_first=[140])
    commands = [
        command(f"{index}", [2, 4, 5][: 1 + index % 3], make_source("Whisper", index), temperature=0.0, rules=rules)
        for index in range(6)
    ]
    crowd = Crowd(make_engine(tmp_path))
    crowd.run(commands)
    config = GenerationConfig(eos_token_id=140, no_timestamps_token_id=first - 1, max_initial_timestamp_index=20)
    num_times = 0
    for each in commands:
        assert each.source is not None
        processors = LogitsProcessorList(
            [
                SuppressTokensAtBeginLogitsProcessor([140], len(each.prompt_token_ids)),
                SuppressTokensLogitsProcessor([3]),
                WhisperTimeStampLogitsProcessor(config, begin_index=len(each.prompt_token_ids)),
            ]
        )
        expected = GenerationMixin.generate(
            model,
            **arguments(each.source),
            decoder_input_ids=torch.tensor([each.prompt_token_ids]),
            logits_processor=processors,
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=VOCAB_SIZE,
            forced_eos_token_id=None,
            use_cache=False,
            begin_suppress_tokens=None,
        )
        said = crowd.tokens(each.request_id)
        assert said == expected[0].tolist()[len(each.prompt_token_ids) :]
        num_times += sum(token >= first for token in said)
    assert num_times > 12  # more than that each text begins with one


def test_what_is_not_supported_is_refused_by_name(tmp_path: Path) -> None:
    write_encoder_decoder("Bart", tmp_path, encoder_no_repeat_ngram_size=3)
    with pytest.raises(ModelError, match=r"encoder_no_repeat_ngram_size of generation_config\.json is 3"):
        make_engine(tmp_path)
    write_encoder_decoder("Bart", tmp_path)
    with pytest.raises(ModelError, match="lora: bart is an encoder-decoder"):
        make_engine(tmp_path, lora_loading=True)
    with pytest.raises(StartupError, match="model_impl: the decoder does not run bart"):
        make_engine(tmp_path, model_impl="decoder")
    core = make_engine(tmp_path)
    core.add(command("long", [2], text_source([3] * 201)))
    core.add(command("none", [2], text_source([])))
    errors = {output.request_id: output.error for output in core.step().outputs}
    assert errors == {
        "long": "the model's encoder reads up to 200 tokens, not 201",
        "none": "the model's encoder reads up to 200 tokens, not 0",
    }


@pytest.mark.parametrize("family", ["UMT5", "M2M100", "Whisper"])
def test_check_model_agrees(family: str, tmp_path: Path) -> None:
    write_encoder_decoder(family, tmp_path)
    write_tokenizer(tmp_path)
    assert check_model.check(str(tmp_path))
