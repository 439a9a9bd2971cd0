"""The format of tool calls is the one in which a chat template shows them; a form that is not read is a warning."""

import logging
import re

import pytest

from app.text.chat_template import ChatTemplate
from app.text.tools.choose import choose_format
from app.text.tools.formats import FORMATS
from tests.text.families import CITIES, SOURCES, USER, call, called, result

READ = {
    "deepseek_v3": "deepseek_v3",
    "glm4_5": "glm45",
    "granite3": "granite",
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
}
TOLD_IN_WORDS = sorted({"gemma2", "gemma3", "llama2", "phi4_mini", "smollm2"})


SHOWN_IN_DSML = (
    '\n\n<｜DSML｜BLOCK>\n<｜DSML｜invoke name="{{ f.name }}">\n{% for k, v in f.arguments | items %}'
    '<｜DSML｜parameter name="{{ k }}" string="{{ v is string and "true" or "false" }}">{{ v }}</｜DSML｜parameter>\n'
    "{% endfor %}</｜DSML｜invoke>\n</｜DSML｜BLOCK>"
)
SHOWN = {
    "deepseek_v31": "{% if loop.first %}<｜tool▁calls▁begin｜>{% endif %}<｜tool▁call▁begin｜>{{ f.name }}"
    "<｜tool▁sep｜>{{ f.arguments | tojson }}<｜tool▁call▁end｜>{% if loop.last %}<｜tool▁calls▁end｜>{% endif %}",
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>"
    "{{ f.arguments | tojson }}<|tool_call_end|><|tool_calls_section_end|>",
    "minimax_m2": '\n<minimax:tool_call>\n<invoke name="{{ f.name }}">\n{% for k, v in f.arguments | items %}'
    '<parameter name="{{ k }}">{{ v }}</parameter>{% endfor %}\n</invoke>\n</minimax:tool_call>',
    "deepseek_v32": SHOWN_IN_DSML.replace("BLOCK", "function_calls"),
    "deepseek_v4": SHOWN_IN_DSML.replace("BLOCK", "tool_calls"),
    "minimax": '<tool_calls>\n{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_calls>',
    "seed_oss": "\n<seed:tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments | items %}"
    "<parameter={{ k }}>{{ v }}</parameter>\n{% endfor %}</function>\n</seed:tool_call>",
    "command": '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "{{ f.name }}", '
    '"parameters": {{ f.arguments | tojson }}}\n]<|END_ACTION|>',
    "functiongemma": "<start_function_call>call:{{ f.name }}{{ '{' }}"
    "{% for k, v in f.arguments | items %}{{ k }}:<escape>{{ v }}<escape>{% endfor %}{{ '}' }}<end_function_call>",
    "gemma4": "<|tool_call>call:{{ f.name }}{{ '{' }}"
    '{% for k, v in f.arguments | items %}{{ k }}:<|"|>{{ v }}<|"|>{% endfor %}{{ "}" }}<tool_call|>',
}
"""How the templates of these families write a call `c` of a function `f`."""


@pytest.mark.parametrize("name", SHOWN)
def test_a_form_is_found_in_the_template(name: str, caplog: pytest.LogCaptureFixture) -> None:
    calls = f"{{% for c in m.tool_calls or [] %}}{{% set f = c.function %}}{SHOWN[name]}{{% endfor %}}"
    source = f"{{{{ tools }}}}{{% for m in messages %}}<{{{{ m.role }}}}>{{{{ m.content or '' }}}}{calls}{{% endfor %}}"
    assert choose_format("auto", template(source)) is FORMATS[name]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_ids_tell_functions_where_the_template_writes_nothing_else() -> None:
    calls = f"{{% for c in m.tool_calls or [] %}}{{% set f = c.function %}}{SHOWN['kimi_k2']}{{% endfor %}}"
    source = "{% for m in messages %}{{ m.tool_call_id }}:{{ m.content or '' }}" + calls + "{% endfor %}"
    again = called("{}", 1)  # a client may use an id again
    again["function"]["name"] = "time"
    chat = [USER, call(*CITIES), result(1), result(0), call("") | {"tool_calls": [again]}, result(1)]
    rendered = "".join(text for text, _ in template(source).render(chat))
    assert re.findall(r"functions\.(\w+:\d)", rendered) == [
        *("weather:0", "weather:1", "weather:1", "weather:0", "time:2", "time:2")
    ]


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
