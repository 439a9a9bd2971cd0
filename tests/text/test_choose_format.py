"""The format of tool calls is the one in which a chat template shows them; a form that is not read is a warning."""

import logging

import pytest

from app.text.chat_template import ChatTemplate
from app.text.tools.choose import choose_format
from app.text.tools.formats import FORMATS
from tests.text.families import SOURCES

READ = {
    "gpt_oss_like": "harmony",
    "llama3_1": "llama3_json",
    "magistral": "mistral",
    "mistral_v3": "mistral",
    "qwen2_5": "hermes",
    "qwen3": "hermes",
    "qwen3_coder": "qwen3_coder",
}
NOT_READ = {
    "command_r": "Action:",
    "glm4_5": "<arg_key>",
    "granite3": "<|tool_call|>[",
}
TOLD_IN_WORDS = sorted({"gemma2", "gemma3", "llama2", "phi4_mini", "smollm2", "deepseek_v3"})


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}, [])


@pytest.mark.parametrize(("family", "name"), [*READ.items(), *((family, "hermes") for family in TOLD_IN_WORDS)])
def test_the_format_that_the_template_shows_is_read(family: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert choose_format("auto", template(SOURCES[family])) is FORMATS[name]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(("family", "form"), NOT_READ.items())
def test_a_form_that_is_not_read_is_named(family: str, form: str, caplog: pytest.LogCaptureFixture) -> None:
    choose_format("auto", template(SOURCES[family]))
    (record,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert form in record.getMessage()


def test_a_setting_is_taken_but_not_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_format("mistral", template(SOURCES["mistral_v3"])) is FORMATS["mistral"]
    assert not caplog.records
    assert choose_format("pythonic", template(SOURCES["qwen2_5"])) is FORMATS["pythonic"]
    assert '<tool_call>\\n{"name": "probe_function"' in caplog.text


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("… <tool_call> …", "hermes"),
        (
            "<tool_call>\n<function=example>\n<parameter=key>\nvalue\n</parameter>\n</function>\n</tool_call>",
            "qwen3_coder",
        ),
        ("{{ '[TOOL_CALLS]' }}", "mistral"),
        ('Respond as {"name": f, "parameters": d}', "llama3_json"),
        ("[func_name1(params_name1=params_value1)]", "pythonic"),
    ],
)
def test_a_template_that_shows_no_calls_may_describe_them(words: str, name: str) -> None:
    source = "{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}" + words
    assert choose_format("auto", template(source)) is FORMATS[name]


def test_a_template_that_only_has_tools(caplog: pytest.LogCaptureFixture) -> None:
    source = "{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert choose_format("auto", template(source)) is FORMATS["hermes"]
    assert "shows no form of calls" in caplog.text
