"""A server with Whisper: sound files become texts, as transformers makes them of the same sound."""

import io
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile
from tokenizers.implementations import ByteLevelBPETokenizer
from transformers import PreTrainedModel, WhisperFeatureExtractor
from transformers.models.whisper.tokenization_whisper import _combine_tokens_into_words

from app.checkpoint.byte_alphabet import byte_alphabet
from app.core.sampling import Alignment, SamplingParams
from app.core.sources import sound_source
from app.core.wire import GenerateCommand
from app.engine.build import build_engine
from app.settings import load_settings
from tests.models.encoder_decoders import write_encoder_decoder
from tests.server.process import Server, running_server

END, START, ENGLISH, GERMAN, TRANSLATE, TRANSCRIBE, PREVIOUS, SILENT, NO_TIMES, FIRST = range(256, 266)
SECONDS = 6
"""Of a window."""
SIZES = {"vocab_size": FIRST + 50 * SECONDS + 1, "max_source_positions": 50 * SECONDS, "max_target_positions": 40}
NEVER = -1e9
"""A mean log probability that every text has."""
GENERATION = {
    "decoder_start_token_id": START,
    "eos_token_id": END,
    "lang_to_id": {"<|en|>": ENGLISH, "<|de|>": GERMAN},
    "task_to_id": {"translate": TRANSLATE, "transcribe": TRANSCRIBE},
    "no_timestamps_token_id": NO_TIMES,
    "prev_sot_token_id": PREVIOUS,
    "max_initial_timestamp_index": 50,
    "is_multilingual": True,
    "suppress_tokens": [START, ENGLISH, GERMAN, TRANSLATE, TRANSCRIBE, PREVIOUS, SILENT],
    "begin_suppress_tokens": [32, END],
    "forced_eos_token_id": None,
    "max_length": 40,
    "alignment_heads": [[2, 0], [0, 1], [2, 3]],
}


def write_tokenizer(folder: Path) -> None:
    fast = ByteLevelBPETokenizer(vocab=byte_alphabet(), merges=[])
    names = "endoftext startoftranscript en de translate transcribe startofprev nospeech notimestamps"
    fast.add_special_tokens([f"<|{name}|>" for name in names.split()])
    fast.add_tokens([f"<|{step * 0.02:.2f}|>" for step in range(50 * SECONDS + 1)])
    fast.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, PreTrainedModel]]:
    folder = tmp_path_factory.mktemp("whisper")
    model = write_encoder_decoder("Whisper", folder, SIZES, **GENERATION)
    write_tokenizer(folder)
    flags = ("--dtype", "float32", "--cpu-threads", "1", "--request-limits", '{"max_audio_seconds": 30}')
    with running_server("--model", str(folder), *flags) as server:
        yield server, model


def sound(seconds: float, rate: int = 16_000) -> np.ndarray:
    """Tones that change, and noise."""
    times = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(len(times)) * 0.02
    return (0.4 * np.sin(2000 * np.sin(0.7 * times)) * (times % 3 < 2) + noise).astype(np.float32)


def file_of(samples: np.ndarray, kind: str = "WAV", rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype="FLOAT" if kind == "WAV" else None)
    return file.getvalue()


def ask(server: Server, file: bytes, task: str = "transcriptions", **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/audio/{task}", files={"file": file}, data=fields, timeout=120)


def expected(model: PreTrainedModel, samples: np.ndarray, **options: Any) -> list[dict[str, Any]]:
    """transformers' segments: times, tokens of text, and the mean log probability of their window."""
    extract = WhisperFeatureExtractor(feature_size=16, chunk_length=SECONDS)
    features = extract(samples, sampling_rate=16_000, truncation=False, return_tensors="pt").input_features
    assert features.shape[-1] >= 100 * SECONDS
    options = {"language": "de", "task": "transcribe", "temperature": (0.0,), "logprob_threshold": NEVER} | options
    generated = model.generate(features, return_timestamps=True, return_segments=True, **options)
    segments = []
    for segment in generated["segments"][0]:
        result = segment["result"]
        if tokens := [token for token in segment["tokens"].tolist() if token < END]:
            total = len(result["scores"]) * model._retrieve_avg_logprobs(result["scores"], result["sequences"], 0.0)
            has_end = (
                result["sequences"][-1] == END
            )  # which openai/whisper counts in any case, and transformers does not
            average = float(total) / (len(result["scores"]) + (not has_end))
            times = {"start": float(segment["start"]), "end": float(segment["end"])}
            segments.append(times | {"tokens": tokens, "avg_logprob": average})
    return segments


def write_down(server: Server, samples: np.ndarray, **fields: Any) -> list[dict[str, Any]]:
    """The segments of an answer. No text is written again, unless fields say so."""
    limits = {"compression_ratio_threshold": -NEVER, "logprob_threshold": NEVER, "no_speech_threshold": 1.0}
    fields = {"response_format": "verbose_json", "language": "de"} | limits | fields
    answer = ask(server, file_of(samples), **fields).json()
    assert (answer["language"], answer["duration"]) == ("german", len(samples) / 16_000)
    return list(answer["segments"])


def check_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert [segment["tokens"] for segment in ours] == [segment["tokens"] for segment in theirs]
    for one, other in zip(ours, theirs, strict=True):
        for name in ("start", "end", "avg_logprob"):
            assert one[name] == pytest.approx(other[name], abs=1e-3)


def test_windows_and_segments_are_those_of_transformers(whisper: tuple[Server, PreTrainedModel]) -> None:
    """Each for itself, behind the text before, and without those where nothing is said."""
    server, model = whisper
    samples = sound(11)
    alone = write_down(server, samples)
    check_same(alone, expected(model, samples))
    assert len({segment["seek"] for segment in alone}) > 1
    behind = write_down(server, samples, condition_on_previous_text="true")
    check_same(behind, expected(model, samples, condition_on_prev_tokens=True))
    assert [segment["tokens"] for segment in behind] != [segment["tokens"] for segment in alone]
    limit = float(np.mean([f([segment["no_speech_prob"] for segment in alone]) for f in (min, max)]))
    some = write_down(server, samples, logprob_threshold=0.0, no_speech_threshold=limit, temperature=1e-6)
    check_same(some, expected(model, samples, logprob_threshold=0.0, no_speech_threshold=limit))
    assert 0 < len(some) < len(alone)


class Decoder:
    """What transformers asks of a tokenizer to find words."""

    eos_token_id = END

    def decode(self, tokens: list[int], **_: Any) -> str:
        return bytes(token for token in tokens if token < END).decode(errors="replace")


def test_words_have_the_times_that_transformers_gives_their_tokens(whisper: tuple[Server, PreTrainedModel]) -> None:
    server, model = whisper
    samples = sound(11)
    extract = WhisperFeatureExtractor(feature_size=16, chunk_length=SECONDS)
    heard = extract(samples, sampling_rate=16_000, truncation=False, return_tensors="pt", return_attention_mask=True)
    generated = model.generate(
        **heard, language="de", task="transcribe", return_timestamps=True, return_segments=True,
        return_token_timestamps=True,
    )  # fmt: skip
    expected_words = []
    for segment in generated["segments"][0]:
        times, at = segment["token_timestamps"].tolist(), 0
        texts, tokens, _ = _combine_tokens_into_words(
            Decoder(), [token for token in segment["tokens"].tolist() if token < END], "german"
        )
        at = next((index for index, token in enumerate(segment["tokens"]) if token < END), 0)
        for text, of_word in zip(texts, tokens, strict=True):
            expected_words.append({"word": text.strip(), "start": times[at], "end": times[at + len(of_word)]})
            at += len(of_word)
    fields = {"logprob_threshold": NEVER, "compression_ratio_threshold": -NEVER, "timestamp_granularities[]": "word"}
    asked = {"response_format": "verbose_json", "language": "de"} | fields
    answer = ask(server, file_of(samples), **asked).json()
    assert "segments" not in answer
    assert len(answer["words"]) == len(expected_words) > 5
    for ours, theirs in zip(answer["words"], expected_words, strict=True):
        assert ours["word"] == theirs["word"]
        assert (ours["start"], ours["end"]) == pytest.approx((theirs["start"], theirs["end"]), abs=1e-3)


def test_poor_texts_are_written_again_at_higher_temperatures(whisper: tuple[Server, PreTrainedModel]) -> None:
    """As openai/whisper has it; the numbers are of what was written at last."""
    server, samples = whisper[0], sound(0.5)
    first = write_down(server, samples)[0]
    logprob, ratio = first["avg_logprob"], first["compression_ratio"]
    just_good = {"logprob_threshold": logprob - 1e-4, "compression_ratio_threshold": ratio + 1e-4}
    same = write_down(server, samples, **just_good)[0]
    assert (same["tokens"], same["temperature"]) == (first["tokens"], 0)
    improbable = {"logprob_threshold": logprob + 1e-4}
    again = write_down(server, samples, **improbable)[0]
    assert again["temperature"] > 0
    assert again["temperature"] == 1 or again["avg_logprob"] > logprob
    again = write_down(server, samples, compression_ratio_threshold=ratio - 1e-4)[0]
    assert again["temperature"] > 0
    assert again["temperature"] == 1 or again["compression_ratio"] < ratio
    assert write_down(server, samples, **improbable, temperature=0.1)[0]["temperature"] == 0.1


def test_the_language_is_found_and_openais_client_reads_all_forms(whisper: tuple[Server, PreTrainedModel]) -> None:
    server, model = whisper
    file = file_of(sound(4), "FLAC")
    features = WhisperFeatureExtractor(feature_size=16, chunk_length=SECONDS)(
        sound(4), sampling_rate=16_000, return_tensors="pt"
    )
    token = int(model.detect_language(features.input_features)[0])
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        create = partial(
            client.audio.transcriptions.create, temperature=0.5
        )  # which is kept to, however poor texts are
        model_name = client.models.list().data[0].id
        whole = create(file=("a.flac", file), model=model_name, response_format="verbose_json")
        assert whole.language == {ENGLISH: "english", GERMAN: "german"}[token]
        text = create(file=("a.flac", file), model=model_name).text
        assert text
        assert create(file=("a.flac", file), model=model_name, response_format="text").strip() == text
        events = list(create(file=("a.flac", file), model=model_name, stream=True))
        assert "".join(event.delta for event in events[:-1]).strip() == events[-1].text == text
        subtitles = create(file=("a.flac", file), model=model_name, response_format="vtt")
        assert subtitles.startswith("WEBVTT\n\n00:00:0")
        assert whole.segments
        assert subtitles.count(" --> ") == len(whole.segments)
    assert ask(server, file, "translations", temperature=0.5).json()["text"]


def test_other_rates_and_channels_are_read(whisper: tuple[Server, PreTrainedModel]) -> None:
    server, _ = whisper
    stereo = np.stack([sound(4, 44_100), sound(4, 44_100)], axis=1)
    answer = ask(server, file_of(stereo, rate=44_100), response_format="verbose_json", temperature=0.5)
    assert answer.json()["duration"] == pytest.approx(4, abs=0.02)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"file": b"no sound"}, "no sound file that can be read"),
        ({"file": file_of(sound(31))}, "longer than 30 seconds (max_audio_seconds)"),
        ({"file": file_of(np.zeros((100, 9)))}, "9 channels"),
        ({"language": "klingon"}, "language klingon"),
        ({"timestamp_granularities[]": "word"}, "word only with response_format verbose_json"),
        ({"timestamp_granularities[]": "syllable"}, "timestamp_granularities"),
        ({"temperature": "warm"}, "temperature"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"stream": "true", "response_format": "srt"}, "stream"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(
    fields: dict[str, Any], reason: str, whisper: tuple[Server, PreTrainedModel]
) -> None:
    answer = ask(whisper[0], **{"file": file_of(sound(1)), **fields})
    assert answer.status_code == 400, answer.text
    assert reason in answer.json()["error"]["message"]


def test_a_completion_of_sound_is_refused(whisper: tuple[Server, PreTrainedModel]) -> None:
    answer = whisper[0].post("/v1/completions", {"prompt": "Hello"})
    assert answer.status_code == 400
    assert "writes down what is said in a sound" in answer.json()["error"]["message"]
    (model,) = whisper[0].get("/v1/models").json()["data"]
    assert (model["tasks"], model["input_modalities"]) == (["transcribe"], ["audio"])


def test_texts_are_laid_along_their_sounds_as_far_as_a_step_has_room(tmp_path: Path) -> None:
    """Each takes a pass of the encoder, for which others wait."""
    write_encoder_decoder("Whisper", tmp_path, SIZES, **GENERATION)
    write_tokenizer(tmp_path)
    options = {"max_num_batched_tokens": 400, "max_num_seqs": 8}
    core, ready = build_engine(load_settings(model=str(tmp_path), device="cpu", dtype="float32", **options), tmp_path)
    draw = np.random.default_rng(0)
    sounds = [
        sound_source(draw.standard_normal((16, 100 * SECONDS)).astype(np.float32), 50 * SECONDS) for _ in range(3)
    ]
    asked = [SamplingParams(max_tokens=2, seed=0), SamplingParams(max_tokens=0, seed=0, alignment=Alignment(3, 300))]
    answered = []
    for sampling in asked:  # what the encoder has read is kept when texts are laid along it
        for sound in sounds:
            core.add(
                GenerateCommand(
                    request_id=str(len(answered) + id(sound)),
                    prompt_token_ids=[START, ENGLISH, TRANSCRIBE] + [65] * 20,
                    source=sound,
                    sampling=sampling,
                    arrived_at=time.monotonic(),
                )
            )
        while core.has_work:
            outputs = core.step().outputs
            assert not any(output.error for output in outputs)
            answered.append(sum(bool(output.vector) for output in outputs))
    assert ready.max_source_len == 50 * SECONDS
    assert (sum(answered), max(answered)) == (3, 1)
