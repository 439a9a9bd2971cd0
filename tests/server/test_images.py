"""A whole service that reads images, and the clients of both makers' APIs."""

import base64
import io
import os
import signal
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import psutil
import pytest
from PIL import Image

from tests.media.folders import write_folder
from tests.media.test_families import image_file
from tests.patience import PATIENCE
from tests.server.process import Server, running_server

SEEN, OTHER = image_file(130, 90), image_file(130, 90, seed=2)
DATA = base64.b64encode(SEEN).decode()
URL = f"data:image/png;base64,{DATA}"
PATH = "messages[0].content[1].image_url"


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("seeing") / "tiny"
    folder.mkdir()
    write_folder("Qwen2_5_VL", folder)
    flags = ("--dtype", "float32", "--cpu-threads", "1", "--max-num-batched-tokens", "128")
    with running_server("--model", str(folder), *flags) as running:
        yield running


def chat(server: Server, url: str | None, **options: object) -> Any:
    """The answer to a chat with an image, or with none."""
    image = [] if url is None else [{"type": "image_url", "image_url": {"url": url, "detail": "high"}}]
    content = [{"type": "text", "text": "Look: "}, *image, {"type": "text", "text": "What is it?"}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    return server.post("/v1/chat/completions", body | options)


def test_the_model_says_that_it_reads_images(seeing: Server) -> None:
    (model,) = seeing.get("/v1/models").json()["data"]
    assert model["input_modalities"] == ["text", "image"]


def test_openais_client(seeing: Server) -> None:
    client = openai.OpenAI(base_url=f"{seeing.url}/v1", api_key="x", timeout=PATIENCE)
    parts: Any = [
        {"type": "text", "text": "Look: "},
        {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
        {"type": "text", "text": "What is it?"},
    ]
    options: Any = {"max_tokens": 8, "temperature": 0, "extra_body": {"ignore_eos": True}}
    answer = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": parts}], n=2, **options)
    one, two = (choice.message.content for choice in answer.choices)
    assert one == two
    assert answer.usage is not None
    without = chat(seeing, None).json()["usage"]["prompt_tokens"]
    assert answer.usage.prompt_tokens == without + 15 + 2  # 3 x 5 places, between two marks
    again = chat(seeing, URL).json()
    assert again["choices"][0]["message"]["content"] == one
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 16
    said: Any = [{"role": "user", "content": [
        {"type": "input_text", "text": "Look: "}, {"type": "input_image", "image_url": URL, "detail": "auto"},
        {"type": "input_text", "text": "What is it?"}]}]  # fmt: skip
    response = client.responses.create(model="tiny", input=said, max_output_tokens=8, temperature=0,
                                       extra_body={"ignore_eos": True})  # fmt: skip
    assert response.output_text == one
    later = client.responses.create(model="tiny", input="And now?", previous_response_id=response.id,
                                    max_output_tokens=8, temperature=0)  # fmt: skip
    assert later.usage is not None
    assert later.usage.input_tokens > answer.usage.prompt_tokens


def test_anthropics_client(seeing: Server) -> None:
    client = anthropic.Anthropic(base_url=seeing.url, api_key="x", timeout=PATIENCE)
    image: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}}
    shown: Any = [{"type": "text", "text": "Look: "}, image, {"type": "text", "text": "What is it?"}]
    messages: Any = [{"role": "user", "content": shown}]
    answer = client.messages.create(
        model="tiny", max_tokens=8, messages=messages, extra_body={"ignore_eos": True, "temperature": 0}
    )
    expected = chat(seeing, URL).json()
    assert answer.content[0].type == "text"
    assert answer.content[0].text == expected["choices"][0]["message"]["content"]
    assert (
        client.messages.count_tokens(model="tiny", messages=messages).input_tokens
        == (expected["usage"]["prompt_tokens"])
    )
    call: Any = {"type": "tool_use", "id": "t", "name": "screenshot", "input": {}}
    told: Any = [{"role": "user", "content": "Take one."}, {"role": "assistant", "content": [call]}]
    result: Any = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "Here:"}, image]}
    with_image = client.messages.count_tokens(model="tiny", messages=[*told, {"role": "user", "content": [result]}])
    result = {**result, "content": [{"type": "text", "text": "Here:"}]}
    alone = client.messages.count_tokens(model="tiny", messages=[*told, {"role": "user", "content": [result]}])
    assert with_image.input_tokens >= alone.input_tokens + 15 + 2
    messages = [
        {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/x.png"}}]}
    ]
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\]\.content\[0\]\.source: http: URLs are not"):
        client.messages.create(model="tiny", max_tokens=8, messages=messages)


def test_other_images_get_other_answers(seeing: Server) -> None:
    other = f"data:image/png;base64,{base64.b64encode(OTHER).decode()}"
    first, second, again = (
        chat(seeing, url, logprobs=True).json()["choices"][0]["logprobs"]["content"][0] for url in (URL, other, URL)
    )
    assert first["token"] == again["token"]
    assert abs(first["logprob"] - again["logprob"]) < 1e-4 < abs(first["logprob"] - second["logprob"])


def test_what_cannot_be_read_is_named(seeing: Server) -> None:
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    for data, status, words in (
        (SEEN[: len(SEEN) // 2], 400, "cut off"),
        (bomb.getvalue(), 413, "max_image_pixels"),
        (image_file(2, 900), 400, "the model's processor refuses it"),  # too narrow for it
        (b"\x89PNG\r\n\x1a\n" + os.urandom(11 * 2**20), 413, "max_image_size"),
    ):
        answer = chat(seeing, f"data:image/png;base64,{base64.b64encode(data).decode()}")
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (status, PATH), error
        assert words in error["message"]
        assert answer.elapsed.total_seconds() < PATIENCE
    image = {"type": "image_url", "image_url": {"url": URL}}
    many = seeing.post("/v1/chat/completions", {"messages": [{"role": "user", "content": [image] * 33}]})
    assert (many.status_code, many.json()["error"]["param"]) == (400, "images")
    typed = seeing.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "<|image_pad|>"}]})
    assert typed.status_code == 200  # as text
    wrong = seeing.post("/v1/chat/completions", {"messages": [{"role": "system", "content": [image]}]})
    assert wrong.json()["error"]["param"] == "messages[0].content[0]"


def test_a_process_that_dies_is_replaced(seeing: Server) -> None:
    (process,) = (
        one
        for one in psutil.Process(seeing.process.pid).children(recursive=True)
        if "app.media.process" in one.cmdline()
    )
    process.send_signal(signal.SIGKILL)
    psutil.wait_procs([process], timeout=PATIENCE)
    unseen = f"data:image/jpeg;base64,{base64.b64encode(image_file(64, 64, 'JPEG', 5)).decode()}"
    assert chat(seeing, unseen).status_code == 200
