"""Chats with images get the text that transformers generates with its own processor, in a crowd and over HTTP."""

import asyncio
import base64
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from app.checkpoint.folder import ModelFolder
from app.core.media import Array
from app.core.wire import EngineReady, GenerateCommand, Progress
from app.engine.chunk_pacer import ChunkPacer
from app.engine.core import EngineCore
from app.engine.kv_cache import KVCache
from app.engine.scheduler import Scheduler
from app.errors import StartupError
from app.fairness.alone import Alone
from app.media import messages, process
from app.media.preparer import ImagePreparer
from app.media.processors import ChatImages, load_processor
from app.worker.factory import build_worker
from app.worker.model_state import Several
from tests.api.conftest import Server, start_server
from tests.api.fake_engine import READY
from tests.media.folders import FOLDERS, VOCAB_SIZE, write_folder
from tests.models.test_oracle import tiny_settings

MAX_MODEL_LEN = 320
NUM_TOKENS = 14
TOLERANCE = 2e-4


class PreparedHere(ImagePreparer):
    """Prepares images in this process, which has imported transformers already."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._images = ChatImages(folder)

    async def ready(self) -> messages.Ready:
        """See `ImagePreparer`."""
        return messages.Ready(placeholder=self._images.placeholder, token_id=self._images.token_id)

    async def _prepare(self, image: messages.Image) -> messages.Prepared:
        return process.prepare(self._images, image)


def image_file(width: int, height: int, kind: str = "PNG", seed: int = 0) -> bytes:
    """A file with an image that has something to see."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


def image_part(file: bytes) -> dict[str, Any]:
    kind = "png" if file.startswith(b"\x89PNG") else "jpeg"
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{base64.b64encode(file).decode()}"}}


WIDE, SMALL, OTHER = image_file(130, 90), image_file(64, 70, "JPEG", 1), image_file(130, 90, seed=2)
CHATS: dict[str, list[Any]] = {
    "two": ["Look: ", WIDE, " and then ", SMALL, "What do these show?"],
    "as before": ["Look: ", WIDE, " and then ", SMALL, "Which is larger?"],
    "another image": ["Look: ", OTHER, " and then ", SMALL, "What do these show?"],
    "one": [SMALL, "Why?"],
    "no image": ["How are you? I am fine, and so is my dog. It likes to read."],
}
"""Texts and files of what a user says."""


def ask(server: Server, said: list[Any], **options: Any) -> GenerateCommand:
    """What the engine is told of a chat, as it arrives there."""
    parts = [image_part(one) if isinstance(one, bytes) else {"type": "text", "text": one} for one in said]
    chat = [{"role": "user", "content": parts}]
    body = {"messages": chat, "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True, "logprobs": True}
    answer = server.post("/v1/chat/completions", body | options)
    assert answer.status_code == 200, answer.text
    command = server.engine.commands.get_nowait()
    assert answer.json()["usage"]["prompt_tokens"] == len(command.prompt_token_ids)
    return msgspec.msgpack.decode(msgspec.msgpack.encode(command), type=GenerateCommand)


@contextmanager
def seeing_server(folder: Path) -> Iterator[Server]:
    running = start_server(folder, images=PreparedHere(folder))
    server = next(running)
    server.engine.ready = msgspec.structs.replace(
        READY, reads_images=True, vocab_size=VOCAB_SIZE, max_model_len=MAX_MODEL_LEN
    )
    yield server
    assert next(running, None) is None


def expected(model: Any, folder: Path, said: list[Any]) -> tuple[list[int], torch.Tensor]:
    """The tokens of a prompt with its answer, and the log probabilities behind each token of the answer."""
    processor, tokenizer = load_processor(folder), AutoTokenizer.from_pretrained(folder)
    parts = [{"type": "image"} if isinstance(one, bytes) else {"type": "text", "text": one} for one in said]
    chat = [{"role": "user", "content": parts}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    images = [Image.open(io.BytesIO(one)).convert("RGB") for one in said if isinstance(one, bytes)]
    given = processor(text=[text], images=[images] if images else None, return_tensors="pt")
    if "mm_token_type_ids" in given and not hasattr(model.model, "get_rope_index"):
        del given["mm_token_type_ids"]
    out = model.generate(
        **given, max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    return out.sequences[0].tolist(), torch.log_softmax(torch.cat(out.logits).float(), -1)


def make_engine(folder: Path, longest: int, backend: str = "auto") -> EngineCore:
    """An engine with chunks of 24 tokens, and memory for one request and a half, or less where layers keep states."""
    has_states = "linear_attention" in ModelFolder(folder).text_config.get("layer_types", ())
    num_blocks = (longest + NUM_TOKENS) * (5 if has_states else 6) // 32
    sizes = {"max_model_len": 8 * num_blocks, "num_kv_blocks": num_blocks, "attention_backend": backend}
    settings = tiny_settings().model_copy(update=sizes)
    built = build_worker(settings, folder)
    assert built.reads_images
    pacer = ChunkPacer(1000.0, settings.block_size, 24)
    scheduler = Scheduler(
        KVCache(built.limits.groups, settings.block_size, 24, states=built.limits.states),
        pacer,
        Alone(pacer),
        max_num_seqs=4,
        max_num_batched_tokens=24,
        max_model_len=num_blocks * settings.block_size,
        whole_media=built.limits.whole_media,
    )
    return EngineCore(scheduler, built.worker)


def run(core: EngineCore, commands: dict[str, GenerateCommand]) -> tuple[dict[str, list[Any]], int]:
    """The outputs of requests that come one after the other, and how many preemptions there were."""
    waiting, preemptions = list(commands), 0
    outputs: dict[str, list[Any]] = {name: [] for name in commands}
    for step in range(5000):
        if waiting and step % 3 == 0:
            name = waiting.pop(0)
            core.add(msgspec.structs.replace(commands[name], request_id=name, arrived_at=time.monotonic()))
        if not waiting and not core.has_work:
            break
        message = core.step()
        assert message.stats is not None
        preemptions += message.stats.num_preemptions
        for output in message.outputs:
            assert not output.error, output.error
            outputs[output.request_id].append(output)
    assert core.scheduler.kv.usage == 0
    assert not any(images_of(core)._media), "prompts are computed, but their pixels are kept"
    return outputs, preemptions


def images_of(core: EngineCore) -> Any:
    """The worker's state of images."""
    state: Any = core.worker.state  # type: ignore[attr-defined]
    return state.states[-1] if isinstance(state, Several) else state


def tokens_of(outputs: list[Any]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


@pytest.mark.parametrize(("family", "backend"), [*((family, "auto") for family in FOLDERS), ("Gemma3", "torch")])
def test_images_in_a_crowd(family: str, backend: str, tmp_path: Path) -> None:
    model = write_folder(family, tmp_path)
    with seeing_server(tmp_path) as server:
        commands = {name: ask(server, said) for name, said in CHATS.items()}
    core = make_engine(tmp_path, max(len(command.prompt_token_ids) for command in commands.values()), backend)
    # Twice, so that prompts are found in the cache, whole and in part.
    outputs, preemptions = run(core, commands | {f"{name} again": command for name, command in commands.items()})
    assert preemptions > 0, "the pool was not small enough to prove anything"
    for name, said in CHATS.items():
        tokens, logprobs = expected(model, tmp_path, said)
        prompt, answer = tokens[:-NUM_TOKENS], tokens[-NUM_TOKENS:]
        assert commands[name].prompt_token_ids == prompt, name
        for one in (name, f"{name} again"):
            assert tokens_of(outputs[one]) == answer, one
            found = [entry.logprobs[0] for output in outputs[one] for entry in output.logprobs]
            assert np.abs(np.array(found) - logprobs[range(NUM_TOKENS), answer].numpy()).max() < TOLERANCE, one
    check_shared_beginnings(core, commands)


def check_shared_beginnings(core: EngineCore, commands: dict[str, GenerateCommand]) -> None:
    """Of a prompt that has been computed, another one is given what is before the first difference, images included.

    Where layers keep states, only the same one is given any: a copy of the states is made where it ends.
    """
    cached = {}
    commands = {
        name: msgspec.structs.replace(command, sampling=msgspec.structs.replace(command.sampling, max_tokens=1))
        for name, command in commands.items()
    }
    for first, second in (("two", "two"), ("two", "as before"), ("two", "another image")):
        core.scheduler.kv.forget()
        run(core, {first: commands[first]})
        outputs, _ = run(core, {second: commands[second]})
        cached[second] = outputs[second][0].num_cached_tokens
    assert cached["two"] >= len(commands["two"].prompt_token_ids) - 8
    if isinstance(core.worker.state, Several):  # type: ignore[attr-defined]
        assert cached["another image"] == cached["as before"] == 0
        return
    start = commands["two"].placed[0].runs[0].start
    assert cached["another image"] <= start < commands["two"].placed[1].runs[-1].end - 8 <= cached["as before"]


def test_a_request_goes_on_behind_the_death_of_an_engine(tmp_path: Path) -> None:
    model = write_folder("Qwen3VL", tmp_path)
    with seeing_server(tmp_path) as server:
        command = ask(server, CHATS["two"], n=1)
    answer = expected(model, tmp_path, CHATS["two"])[0][-NUM_TOKENS:]
    core = make_engine(tmp_path, len(command.prompt_token_ids))
    resumed = msgspec.structs.replace(command, progress=Progress(token_ids=answer[:4]))
    outputs, _ = run(core, {"resumed": resumed})
    assert tokens_of(outputs["resumed"]) == answer[4:]


def test_images_that_exceed_the_context_are_refused_one_by_one(tmp_path: Path) -> None:
    write_folder("LlavaNext", tmp_path)
    with seeing_server(tmp_path) as server:
        content = [image_part(image_file(130, 90, seed=seed)) for seed in range(9)]
        answer = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": content}]})
        kept = list(server.service.images._kept.values())  # type: ignore[union-attr]
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["code"] == "context_length_exceeded"
    count = len(kept)
    assert error["param"] == f"messages[0].content[{count - 1}].image_url"
    assert sum(one.media.num_tokens for one in kept[:-1]) <= MAX_MODEL_LEN < sum(one.media.num_tokens for one in kept)


def test_an_image_that_waits_for_others_ends_at_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait(*_: Any) -> messages.Prepared:
        return await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(PreparedHere, "_prepare", wait)
    write_folder("Llava", tmp_path)
    with seeing_server(tmp_path) as server:
        body = {"messages": [{"role": "user", "content": [image_part(SMALL)]}]}
        answer = server.post("/v1/chat/completions", body, headers={"X-Request-Timeout": "0.1"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (504, "timeout")


def test_a_failing_image_ends_its_own_request_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model says of an image may not fit the places that it was given, or the image not the memory."""
    write_folder("Llava", tmp_path)
    with seeing_server(tmp_path) as server:
        commands = {name: ask(server, CHATS[name]) for name in ("one", "two", "no image")}
    image = commands["one"].placed[0].media.arrays["pixel_values"].numpy()
    broken = msgspec.to_builtins(commands["one"], builtin_types=(bytes,))
    broken["placed"][0]["media"] |= {"digest": b"x", "arrays": {"pixel_values": Array.of(image[:, :2])}}
    core = make_engine(tmp_path, len(commands["two"].prompt_token_ids))
    tower = images_of(core)._model
    see = tower.see

    def see_in_little_memory(arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        if arrays["pixel_values"].shape[1] == 2:
            raise torch.OutOfMemoryError
        seen: torch.Tensor = see(arrays)
        return seen

    for error, blames in (("the model failed on this request", False), ("an image is too large for the mo", True)):
        core.add(msgspec.convert({**broken, "request_id": "broken"}, GenerateCommand))
        for name in ("two", "no image"):
            core.add(msgspec.structs.replace(commands[name], request_id=name))
        ended = {}
        while core.has_work:
            ended |= {output.request_id: output for output in core.step().outputs if output.finish_reason}
        assert {name: output.error[:32] for name, output in ended.items()} == {
            "broken": error,
            "two": "",
            "no image": "",
        }
        assert ended["broken"].blames_request is blames
        assert core.scheduler.max_num_batched_tokens == 24
        monkeypatch.setattr(tower, "see", see_in_little_memory)


def test_the_engine_says_so(tmp_path: Path) -> None:
    """A folder without the files of a processor, and a service whose images are off, read text alone."""
    write_folder("Gemma3", tmp_path)
    sizes = {"max_num_batched_tokens": 23, "max_num_seqs": 8}  # one less than an image of 16 and 8 decodes
    with pytest.raises(StartupError, match="an image's 16 tokens have to fit a step"):
        build_worker(tiny_settings().model_copy(update=sizes), tmp_path)
    off = build_worker(tiny_settings().model_copy(update={"images": False}), tmp_path)
    assert not off.reads_images
    assert not off.limits.whole_media
    assert not any("vision" in name for name, _ in off.worker.model.named_parameters())  # type: ignore[attr-defined]
    for name in ("preprocessor_config.json", "processor_config.json"):
        (tmp_path / name).unlink()
    assert not build_worker(tiny_settings(), tmp_path).reads_images
    assert not msgspec.convert({**msgspec.to_builtins(READY)}, EngineReady).reads_images
