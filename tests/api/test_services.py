"""Which of several models a body names."""

import httpx
import pytest

from app.api.services import named
from app.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/completions", b'{"prompt": ["model", {"model": "no"}], "model": "a"}', "a"),
        ("/v1/completions", b'{"prompt": "a"}', None),
        ("/v1/completions", b'{"model": "a"', None),
        ("/v1/completions", b'{"model": ["a"]}', None),
        ("/v1/completions", b"\xff", None),
        ("/v1/load_lora_adapter", b'{"lora_name": "l", "base_model_name": "a"}', "a"),
        ("/v1/unload_lora_adapter", b'{"lora_name": "l"}', "l"),
    ],
)
def test_json_names_a_model(path: str, body: bytes, name: str | None) -> None:
    assert named(path, "application/json", body) == name


def test_an_adapter_needs_a_model() -> None:
    with pytest.raises(InvalidRequestError, match="base_model_name"):
        named("/v1/load_lora_adapter", "application/json", b'{"lora_name": "l"}')


@pytest.mark.parametrize("fields", [{"model": "a/b"}, {"language": "en", "model": "a/b"}, {"language": "model"}])
def test_a_form_names_a_model(fields: dict[str, str]) -> None:
    request = httpx.Request("POST", "http://a", data=fields, files={"file": ("x.wav", b"RIFF\r\n\r\nmodel")})
    kind, body = request.headers["content-type"], request.read()
    assert named("/v1/audio/transcriptions", kind, body) == fields.get("model")


def test_a_form_names_a_model_behind_all_the_files_that_it_may_have() -> None:
    file = b'--xy\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nx\r\n'
    body = 8192 * file + b'--xy\r\nContent-Disposition: form-data; name="model"\r\n\r\nsecond\r\n--xy--\r\n'
    assert named("/v1/classify", "Multipart/Form-Data; Boundary=xy", body) == "second"


@pytest.mark.parametrize(
    "body",
    [
        b'--xy\r\nContent-Disposition: form-data; name="file"\r\n\r\n; name="model"\r\n\r\nof the file\r\n--xy--\r\n',
        b'--xy\r\n; name="model"'
        + b"\r\n; name=model" * 100_000,  # a search for a part's end that goes back takes minutes
        b"--xy" * 100_000,
    ],
)
def test_a_form_is_looked_at_where_parts_begin(body: bytes) -> None:
    assert named("/v1/audio/transcriptions", "multipart/form-data; boundary=xy", body) is None
