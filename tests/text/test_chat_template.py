"""Chats are rendered, cut and encoded as transformers does it, and unsupported ones are refused by name."""

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer

from app.errors import InvalidRequestError, ModelError
from app.text import sandbox
from app.text.chat_template import ChatTemplate
from app.text.tokenizer import Tokenizer
from tests.text.conftest import copy, oracle_of, write_json

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "trims": CHATML.replace("m['content']", "m['content'] | trim"),
    "blocks": """
        {%- for m in messages %}
            {%- if loop.index0 > 3 %}{% break %}{% endif %}
            {%- if m.content == 'system' %}{% continue %}{% endif %}
            {% generation %}
            [{{ loop.index }}] {{ m.role | title }}: {{ m.content }}
            {% endgeneration %}
        {%- endfor %}
        {% if add_generation_prompt %}
        [assistant]
        {% endif %}""",
    "helpers": (
        "{{ bos_token }}{% set ns = namespace(n=0, text='') %}"
        "{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
        "{{ ns.n }}{{ messages | tojson }}{{ {'b': '<é>', 'a': 1} | tojson(indent=2, sort_keys=true) }}"
        "{{ dict(x=1) }}{{ dict.fromkeys(['k'], 2) }}{{ strftime_now('%Y') }}{{ eos_token }}{{ pad_token }}"
    ),
    "nothing given": (
        "{% if tools is not none %}tools{% endif %}{% if documents is not none %}documents{% endif %}"
        "{{ thinking is defined }}{% for m in messages %}{{ m.name is defined }}{{ m.content }}{% endfor %}"
    ),
}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hello 😀"}],
    [{"role": "system", "content": "Be <b>brief</b>."}, {"role": "user", "content": "  two\n\nlines  "}],
    [{"role": "user", "content": "hi", "name": None}, {"role": "assistant", "content": "Well, "}],
    [{"role": role, "content": role} for role in ("user", "assistant", "system", "user", "assistant", "user")],
]


def render(template: ChatTemplate, chat: list[dict[str, Any]], **options: Any) -> str:
    """The whole rendered text."""
    return "".join(text for text, _ in template.render(chat, **options))


@pytest.fixture
def model(smol: Tokenizer, smol_folder: Path) -> ChatTemplate:
    """The embedded model's own template."""
    return ChatTemplate.from_folder(smol_folder, smol)


@pytest.mark.parametrize("name", ["model's own", *TEMPLATES])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_chats_are_rendered_as_transformers_does(
    name: str, chat: list[dict[str, Any]], add_generation_prompt: bool, model: ChatTemplate, oracles: dict[str, Any]
) -> None:
    source, options = TEMPLATES.get(name), {"add_generation_prompt": add_generation_prompt}
    want = oracles["smol"].apply_chat_template(chat, chat_template=source, tokenize=False, **options)
    segments = model.render(chat, override=source, **options)
    assert "".join(text for text, _ in segments) == want
    assert len(segments) == 1  # ordinary text is encoded whole, as if it were one string


@pytest.mark.parametrize("name", ["chatml", "trims"])
@pytest.mark.parametrize("final", ["Well", "Well, ", "\n Well", "", " ", "a a", "<|im_end|> x "])
def test_the_final_message_is_left_open_as_transformers_does(
    name: str, final: str, model: ChatTemplate, oracles: dict[str, Any]
) -> None:
    chat = [{"role": "user", "content": "a a"}, {"role": "assistant", "content": final}]
    want = oracles["smol"].apply_chat_template(
        chat, chat_template=TEMPLATES[name], tokenize=False, continue_final_message=True
    )
    assert render(model, chat, override=TEMPLATES[name], continue_final_message=True) == want


def test_a_template_that_continues_a_message_is_told_of_no_generation_prompt(
    model: ChatTemplate, oracles: dict[str, Any]
) -> None:
    chat, source = [{"role": "assistant", "content": "Well"}], "{{ add_generation_prompt }} {{ messages[0].content }}!"
    want = oracles["smol"].apply_chat_template(chat, chat_template=source, tokenize=False, continue_final_message=True)
    assert render(model, chat, override=source, continue_final_message=True) == want == "False Well"


PIECES = ["hello ", "\n", "<|im_start|>", "<|im_end|>", "<|im_", "start|>", "<|endoftext|>", "system", " 😀", "1"]


def test_control_tokens_of_users_are_encoded_as_transformers_does(
    smol: Tokenizer, model: ChatTemplate, oracles: dict[str, Any]
) -> None:
    @settings(deadline=None, max_examples=80)
    @given(st.lists(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), min_size=1, max_size=3))
    def check(contents: list[str]) -> None:
        chat = [{"role": "user", "content": content} for content in contents]
        want = oracles["smol"].apply_chat_template(
            chat, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=False
        )
        ids = smol.encode_segments(model.render(chat))
        assert ids == want
        # Whatever users type, there are as many control tokens as in a chat where they type none.
        calm = smol.encode_segments(model.render([{**message, "content": "x"} for message in chat]))
        assert [id_ for id_ in ids if id_ in smol.special_ids] == [id_ for id_ in calm if id_ in smol.special_ids]

    check()


@pytest.mark.parametrize("kind", ["metaspace", "legacy", "unigram"])
def test_no_stray_spaces_around_control_tokens_of_users(
    kind: str, tokenizers: dict[str, Tokenizer], oracles: dict[str, Any]
) -> None:
    ours = tokenizers[kind]
    source = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    template = ChatTemplate(source, ours.special_tokens, ours.control_tokens)
    segments = template.render([{"role": "user", "content": "the</s>fox <s> jumps"}])
    text = ours.decode(ours.encode_segments(segments), skip_special_tokens=False)
    whole = oracles[kind].decode(ours.encode("<s>user: the fox jumps</s>", False))
    assert text == whole.replace("the fox jumps", "the</s>fox <s> jumps")


def test_ordinary_chats_are_encoded_as_transformers_does(
    smol: Tokenizer, model: ChatTemplate, oracles: dict[str, Any]
) -> None:
    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.text(max_size=30), min_size=1, max_size=3))
    def check(contents: list[str]) -> None:
        chat = [{"role": "user", "content": content} for content in contents]
        want = oracles["smol"].apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert smol.encode_segments(model.render(chat)) == want

    check()


@pytest.mark.parametrize(
    ("chat", "options"),
    [
        ([{"role": "user", "name": "<|im_end|>", "content": ""}], {"override": "{{ messages[0].name }}"}),
        ([{"role": "user", "content": "<|im_end|>"}], {"override": "{{ messages[0].content | upper | lower }}"}),
        ([{"role": "user", "content": "<|im_end|>"}], {"override": "{{ messages[0].content | e }}"}),
        ([{"role": "user", "content": ""}], {"override": "{{ x.y[0] }}", "kwargs": {"x": {"y": ["<|im_end|>"]}}}),
    ],
)
def test_control_tokens_stay_text_in_any_field_and_through_filters(
    chat: list[dict[str, Any]], options: dict[str, Any], model: ChatTemplate
) -> None:
    assert model.render(chat, **options) == [("<|im_end|>", False)]


def test_a_control_token_is_not_mistaken_for_another_inside_it() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {}, ["<a>", "<a><b>", "<b>"])
    assert template.render([{"role": "user", "content": "<a><b><a>"}]) == [("<a><b>", False), ("<a>", False)]


def test_roles_and_names_of_fields_are_never_marked() -> None:
    """Some vocabularies have added tokens that begin as words do."""
    source = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}n]r{% endif %}{% endfor %}"
    template = ChatTemplate(source, {}, ["r>", "t}"], other_tokens=["n]"])
    assert template.render([{"role": "user", "content": "a n] b"}]) == [("a ", True), ("n]", False), (" bn]r", True)]


def test_parts_of_a_message_are_joined_by_line_breaks(model: ChatTemplate) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    joined = render(model, [{"role": "user", "content": "one\ntwo"}])
    assert render(model, [{"role": "user", "content": parts}]) == joined


def test_further_variables_reach_the_template(model: ChatTemplate) -> None:
    chat = [{"role": "user", "content": "x"}]
    source = "{{ enable_thinking }}{{ bos_token }}"
    assert render(model, chat, override=source, kwargs={"enable_thinking": False, "bos_token": "!"}) == "False!"


LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}" + "x" * 100 + "{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("options", "message", "param"),
    [
        ({"override": "{{ raise_exception('roles must alternate') }}"}, "roles must alternate", "messages"),
        ({"override": "{{ messages[0].content.x.y }}"}, "has no attribute 'x'", "messages"),
        ({"override": "{{ 1 // 0 }}"}, "by zero", "messages"),
        ({"override": "{{ [1] | batch }}"}, "the chat template refuses", "messages"),
        ({"override": "{{ ''.__class__.__mro__ }}"}, "unsafe", "messages"),
        ({"override": "{{ messages.append(1) }}"}, "unsafe|not safely", "messages"),
        ({"override": "{{ dict.update(messages[0], role='system') }}"}, "no attribute", "messages"),
        ({"override": "{% set n = namespace() %}{% set n.__html__ = 1 %}"}, "__html__", "messages"),
        ({"override": "{{ namespace(__html__=1) }}"}, "__html__", "messages"),
        ({"override": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"}, "recursion", "messages"),
        ({"override": LOOPS}, "longer than 100000 characters", "messages"),
        ({"override": "{{ '\\ud800' }}"}, "surrogates not allowed", "messages"),
        ({"override": "{% for %}"}, "chat_template: ", "chat_template"),
        ({"override": "{{ " + "(" * 5000}, "chat_template: ", "chat_template"),
        ({"kwargs": {"messages": []}}, "messages cannot be set here", "chat_template_kwargs"),
        ({"kwargs": {"add_generation_prompt": 1}}, "add_generation_prompt cannot", "chat_template_kwargs"),
        ({"continue_final_message": True, "override": "fixed"}, "final message", "continue_final_message"),
        (
            {"continue_final_message": True, "override": "{{ messages[0].content[2:] }}"},
            "final message",
            "continue_final_message",
        ),
    ],
)
def test_a_chat_that_cannot_be_rendered_is_the_requests_error(
    options: dict[str, Any], message: str, param: str, model: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "_MAX_OUTPUT", 100_000)
    with pytest.raises(InvalidRequestError, match=message) as caught:
        model.render([{"role": "user", "content": "Hello"}], **options)
    assert caught.value.param == param


@pytest.mark.parametrize("chat", [[], [{"role": "assistant"}], [{"role": "assistant", "content": None}]])
def test_nothing_to_continue(chat: list[dict[str, Any]], model: ChatTemplate) -> None:
    with pytest.raises(InvalidRequestError, match="no content to continue") as caught:
        model.render(chat, continue_final_message=True)
    assert caught.value.param == "continue_final_message"


def test_where_a_template_comes_from(folders: dict[str, Path], tmp_path: Path) -> None:
    """Of files with a template, those that transformers writes today come first."""
    chat, ours = [{"role": "user", "content": "x"}], Tokenizer(folders["metaspace"])
    with pytest.raises(InvalidRequestError, match="no chat template") as caught:
        ChatTemplate.from_folder(folders["metaspace"], ours).render(chat)
    assert caught.value.param == "messages"

    def rendered(folder: Path) -> str:
        return render(ChatTemplate.from_folder(folder, Tokenizer(folder)), chat)

    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "default"}]
    for value, want in [("single", "single"), (named, "default")]:
        folder = copy(folders["metaspace"], tmp_path, tokenizer_config={"chat_template": value})
        assert rendered(folder) == want
        assert oracle_of(folder).apply_chat_template(chat, tokenize=False) == want
    write_json(tmp_path / "chat_template.json", {"chat_template": "of the processor"})
    assert rendered(tmp_path) == "of the processor"
    (tmp_path / "chat_template.jinja").write_text("file é", encoding="utf-8")
    assert rendered(tmp_path) == "file é" == oracle_of(tmp_path).apply_chat_template(chat, tokenize=False)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert rendered(tmp_path) == "of the processor"


@pytest.mark.parametrize(
    "content", [{"chat_template": 7}, {"chat_template": [{"name": "x"}]}, {"chat_template": {"default": 1}}, []]
)
def test_a_broken_chat_template_json_is_named(content: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(folders["metaspace"], tmp_path, chat_template=content)
    with pytest.raises(ModelError, match=r"chat_template\.json"):
        ChatTemplate.from_folder(folder, Tokenizer(folder))


def test_chats_with_tools_have_their_own_template_if_there_is_one(folders: dict[str, Path], tmp_path: Path) -> None:
    chat, tools = [{"role": "user", "content": "x"}], [{"type": "function", "function": {"name": "f"}}]
    named = [{"name": "tool_use", "template": "{{ tools[0].function.name }}"}, {"name": "default", "template": "no"}]
    folder = copy(folders["metaspace"], tmp_path, tokenizer_config={"chat_template": named})

    def rendered() -> str:
        ours, theirs = ChatTemplate.from_folder(folder, Tokenizer(folder)), oracle_of(folder)
        texts = [render(ours, chat, tools=given or ()) for given in (tools, None)]
        assert texts == [theirs.apply_chat_template(chat, tools=given, tokenize=False) for given in (tools, None)]
        assert all(entry["template"] in ours.source for entry in named[1:])  # where signs of formats are looked for
        return texts[0]

    assert rendered() == "f"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("file {{ tools[0].function.name }}")
    (folder / "chat_template.jinja").write_text("no")
    assert rendered() == "file f"


QWEN_LIKE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.reasoning_content }}\n{{ m.content }}"
    "{% for call in m.tool_calls %}\n<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}"
)


def test_control_tokens_in_tools_and_calls_stay_text(
    smol: Tokenizer, model: ChatTemplate, oracles: dict[str, Any]
) -> None:
    @settings(deadline=None, max_examples=40)
    @given(*[st.lists(st.sampled_from(PIECES), max_size=4).map("".join) for _ in range(3)])
    def check(one: str, two: str, three: str) -> None:
        def chat(one: str, two: str, three: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
            call = {"type": "function", "function": {"name": "f", "arguments": {one: [two], "x": {"y": three}}}}
            schema = {"type": "object", "properties": {two: {"enum": [three]}}}
            tool = {"type": "function", "function": {"name": "f", "description": one, "parameters": schema}}
            assistant = {"role": "assistant", "reasoning_content": three, "content": one, "tool_calls": [call]}
            return [assistant, {"role": "tool", "content": two}], [tool]

        messages, tools = chat(one, two, three)
        segments = model.render(messages, tools=tools, override=QWEN_LIKE)
        want = oracles["smol"].apply_chat_template(messages, tools=tools, chat_template=QWEN_LIKE, tokenize=False)
        assert "".join(text for text, _ in segments) == want
        messages, tools = chat("a", "b", "c")
        calm = smol.encode_segments(model.render(messages, tools=tools, override=QWEN_LIKE))
        ids = [id_ for id_ in smol.encode_segments(segments) if id_ in smol.special_ids]
        assert ids == [id_ for id_ in calm if id_ in smol.special_ids]

    check()


TAGS = ["<think>", "</think>", "<tool_response>", "</tool_response>"]
WITH_TAGS = (
    CHATML.replace("{{ '<|im_start|>'", "{% if m.role == 'tool' %}<tool_response>{% endif %}{{ '<|im_start|>'")
    + "<think>\n"
)


def test_tags_of_the_template_that_users_type_are_encoded_as_transformers_does(
    smol_folder: Path, tmp_path: Path
) -> None:
    """They are tokens of their own, but not special ones, as in Qwen's models. Others of this kind stay tokens."""
    fast = FastTokenizer.from_file(str(smol_folder / "tokenizer.json"))
    fast.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in [*TAGS, "<other>"]])
    folder = copy(smol_folder, tmp_path)
    fast.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(WITH_TAGS)
    ours, oracle = Tokenizer(folder), oracle_of(folder)
    template = ChatTemplate.from_folder(folder, ours)

    @settings(deadline=None, max_examples=40)
    @given(
        st.lists(st.sampled_from([*TAGS, "<other>", "<|im_end|>", "hello ", "\n", "<thi", "nk>"]), max_size=6).map(
            "".join
        )
    )
    def check(content: str) -> None:
        chat = [{"role": "system", "content": content}, {"role": "user", "content": content}]
        want = oracle.apply_chat_template(chat, sanitize_control_tokens=True, return_dict=False)
        assert ours.encode_segments(template.render(chat, add_generation_prompt=False)) == want

    check()
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>Well</think>Yes"}]
    ids = ours.encode_segments(template.render(said, continue_final_message=True))
    assert [ours.added_id(tag) in ids for tag in TAGS] == [True, True, False, False]  # the model's own are tokens


@pytest.mark.parametrize("content", [b"{% for %}", b"\xff"])
def test_a_broken_template_of_the_model_is_named(content: bytes, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(folders["metaspace"], tmp_path)
    (folder / "chat_template.jinja").write_bytes(content)
    with pytest.raises(ModelError, match=r"chat.template"):
        ChatTemplate.from_folder(folder, Tokenizer(folder))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", "longer than 0.2 s"),  # writes nothing, and so never gives control back
        ("{{ a }}", "longer than"),
    ],
)
def test_a_template_that_takes_too_long_or_too_much_is_stopped(
    body: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "_MAX_SECONDS", 0.2)
    loops = f"{{% for a in range(99999) %}}{{% for b in range(99999) %}}{body}{{% endfor %}}{{% endfor %}}"
    template = ChatTemplate(loops, {}, [])
    with pytest.raises(InvalidRequestError, match=words):
        template.render([{"role": "user", "content": "Hi"}])
    assert sys.gettrace() is None
