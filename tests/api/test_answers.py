"""What answers hold: logprobs as lm-eval reads them, parameters as the engine gets them, half characters, probes."""

import json
import logging
import time

import jsonschema
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.api.operations import deep_check
from app.core.request import FinishReason
from app.core.sampling import Logprobs
from app.core.wire import GenerateCommand, RequestOutput, RequestTiming
from app.text.chat_template import ChatTemplate
from app.text.message_format import MessageFormat
from app.text.tokenizer import Tokenizer
from tests.api.conftest import IM_END, IM_START, MODEL, Server
from tests.api.fake_engine import READY, STATS, say


def lm_eval_score(choice, ctxlen):
    """How lm-eval's local-completions reads a scored prompt (openai_completions.py, parse_logprobs)."""
    logprobs = choice["logprobs"]["token_logprobs"][ctxlen:-1]
    tops = choice["logprobs"]["top_logprobs"][ctxlen:-1]
    greedy = all(token == max(top.values()) for token, top in zip(logprobs, tops, strict=True))
    return sum(logprobs), greedy


def test_lm_eval_scores_prompts(server: Server) -> None:
    prompts = [[0, 9, 0, 0], [9, 0, 8]]
    answer = server.complete(prompt=prompts, echo=True, max_tokens=1, logprobs=1, temperature=0, seed=1234)
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    for choice, prompt in zip(choices, prompts, strict=True):
        assert choice["logprobs"]["token_logprobs"][0] is None
        assert len(choice["logprobs"]["tokens"]) == len(prompt) + 1
    # In the fake, token 0 has logprob 0.0 and beats the best of the others; token 9 has -0.09 and beats it too.
    assert lm_eval_score(choices[0], 2) == (0.0, True)
    assert lm_eval_score(choices[0], 1) == (-0.09, True)
    assert lm_eval_score(choices[1], 2) == (-0.08, True)


def test_lm_eval_is_not_fooled_by_tokens_that_look_alike(server: Server) -> None:
    """Bytes 0x80 and 0x81 are not text by themselves; they must not be taken for the same token."""

    def script(command: GenerateCommand) -> list[RequestOutput]:
        halves = Logprobs([0x80, 0x81], [-5.0, -0.1])
        return [
            RequestOutput(
                request_id=command.request_id,
                token_ids=[65],
                logprobs=[Logprobs([65, 65], [-0.1, -0.1])],
                prompt_logprobs=[halves, halves],
                finish_reason=FinishReason.LENGTH,
            )
        ]

    server.engine.script = script
    choice = server.complete(prompt=[65, 0x80, 0x80], echo=True, max_tokens=1, logprobs=1)["choices"][0]
    assert lm_eval_score(choice, 1) == (-10.0, False)


@pytest.mark.parametrize("stream", [False, True])
def test_echo_without_generation(server: Server, stream: bool) -> None:
    body = {"prompt": "Hi!", "echo": True, "max_tokens": 0, "logprobs": 0}
    if stream:
        (event,) = server.events("/v1/completions", body)
        choice = event["choices"][0]
    else:
        choice = server.complete(**body)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("Hi!", "length")
    assert choice["logprobs"] == {
        "tokens": ["H", "i", "!"],
        "token_logprobs": [None, -1.05, -0.33],
        "top_logprobs": [None, {"i": -1.05}, {"!": -0.33}],
        "text_offset": [0, 1, 2],
    }
    assert server.engine.last_command().sampling.max_tokens == 0


def test_streamed_echo_comes_before_the_text(server: Server) -> None:
    events = server.events("/v1/completions", {"prompt": ["Hi ", "Ho "], "echo": True, "n": 2, "logprobs": 1})
    for index, prompt in enumerate(["Hi ", "Hi ", "Ho ", "Ho "]):
        own = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert own[0]["text"] == prompt + "H"
        assert "".join(choice["text"] for choice in own) == prompt + "Hello"
        assert [offset for choice in own for offset in choice["logprobs"]["text_offset"]] == list(range(8))


def test_an_echo_is_the_prompt_as_it_was_given(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what the tokenizer puts in front of it, but with what the client put there."""
    encode = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text, add=True: [IM_START] * add + encode(self, text, False))
    body = {"echo": True, "max_tokens": 1, "logprobs": 0}
    for prompt, text, offsets in (
        ("Hi", "HiH", [0, 0, 1, 2]),
        (["Hi"], "HiH", [0, 0, 1, 2]),
        ([IM_START, *b"Hi"], "<|im_start|>HiH", [0, 12, 13, 14]),
    ):
        choice = server.complete(prompt=prompt, **body)["choices"][0]
        assert (choice["text"], choice["logprobs"]["text_offset"]) == (text, offsets)
        (event,) = server.events("/v1/completions", {"prompt": prompt, **body})
        assert event["choices"][0]["text"] == text


def test_impossible_tokens_have_a_number(server: Server) -> None:
    """JSON has no infinity: OpenAI writes -9999 for it."""

    def script(command: GenerateCommand) -> list[RequestOutput]:
        lowest, end = Logprobs([65, 66], [-0.5, float("-inf")]), FinishReason.LENGTH
        return [RequestOutput(request_id=command.request_id, token_ids=[65], logprobs=[lowest], finish_reason=end)]

    server.engine.script = script
    choice = server.complete(logprobs=1)["choices"][0]
    assert choice["logprobs"]["top_logprobs"] == [{"A": -0.5, "B": -9999.0}]


def test_characters_are_sent_whole(server: Server) -> None:
    text = "héllo 👩‍👧 日本"
    server.engine.script = say(text)
    body = {"prompt": "Hi", "max_tokens": 64}
    pieces = [event["choices"][0]["text"] for event in server.events("/v1/completions", body)]
    assert "".join(pieces) == text == server.complete(max_tokens=64)["choices"][0]["text"]
    assert "\ufffd" not in "".join(pieces)
    assert len(pieces) == len(text.encode())  # one event a token, some of them empty


def test_outputs_of_several_tokens_are_one_event(server: Server) -> None:
    server.engine.script = say("Hello!", per_output=3)
    events = server.events("/v1/completions", {"prompt": "Hi", "stream_options": {"include_usage": True}})
    assert [event["choices"][0]["text"] for event in events[:-1]] == ["Hel", "lo!"]
    assert [event["usage"] for event in events[:-1]] == [None, None]
    assert events[-1]["usage"]["completion_tokens"] == 6


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": ["a", "bcd"]}),
        ("/v1/completions", {"prompt": ["a", "bcd"], "logprobs": 0}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "n": 2}),
    ],
)
def test_usage_in_every_event(server: Server, path: str, body: dict[str, object]) -> None:
    whole = server.post(path, body).json()["usage"]
    assert all("usage" not in event for event in server.events(path, body))  # nobody asked for it
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = server.events(path, {**body, "stream_options": options})
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert set(range(1, 11)) <= set(counts)
    assert {event["usage"]["prompt_tokens"] for event in events} == {whole["prompt_tokens"]}
    assert (events[-1]["choices"], events[-1]["usage"]) == ([], whole)
    told = server.events(path, {**body, "stream_options": {"continuous_usage_stats": True}})
    assert [event["choices"] == [] for event in told] == [False] * (len(events) - 1)


@pytest.mark.parametrize("is_counted", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "Hi", "n": 2}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "n": 2}),
    ],
)
def test_timings_are_in_whole_answers_and_in_the_last_event(
    server: Server, path: str, body: dict[str, object], is_counted: bool
) -> None:
    """As llama.cpp has them. The engine had each prompt for half a second, and 8 drafts of which it took 6."""

    def script(command: GenerateCommand) -> list[RequestOutput]:
        first, last = say("Hello", cached=1)(command), say("Hello", cached=1)(command)[-1]
        began = time.monotonic() - 1
        first[0].timing = RequestTiming(began, began, began + 0.5, 0.0)
        last.timing = RequestTiming(began, began, began + 0.5, began + 1)
        last.num_drafted_tokens, last.num_accepted_tokens = 4, 3
        return [*first[:-1], last]

    server.engine.script = script
    answer = server.post(path, body).json()
    timings, usage = answer["timings"], answer["usage"]
    assert timings["cache_n"] + timings["prompt_n"] == usage["prompt_tokens"]
    assert timings["cache_n"] == 1
    assert 500 <= timings["prompt_ms"] < 1000  # the second choice may have come a little later
    assert timings["prompt_per_second"] == pytest.approx(1000 * timings["prompt_n"] / timings["prompt_ms"], rel=1e-3)
    assert timings["predicted_n"] == usage["completion_tokens"] == 10
    assert 500 <= timings["predicted_ms"] < 5000
    assert timings["predicted_per_second"] == pytest.approx(8000 / timings["predicted_ms"], rel=1e-3)
    assert (timings["draft_n"], timings["draft_n_accepted"]) == (8, 6)
    events = server.events(path, {**body, "stream_options": {"include_usage": is_counted}})
    assert [index for index, event in enumerate(events) if "timings" in event] == [len(events) - 1]
    assert bool(events[-1]["choices"]) == (not is_counted)
    told = events[-1]["timings"]
    assert told.keys() == timings.keys()
    assert [told[name] for name in ("predicted_n", "prompt_n", "draft_n")] == [10, timings["prompt_n"], 8]


def test_a_response_has_timings_when_it_has_ended(server: Server) -> None:
    whole = server.post("/v1/responses", {"input": "Hi"}).json()
    assert whole["timings"]["predicted_n"] == whole["usage"]["output_tokens"]
    assert whole["timings"]["prompt_n"] == whole["usage"]["input_tokens"]
    lines = server.post("/v1/responses", {"input": "Hi", "stream": True}).text.splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert [event["type"] for event in events if "timings" in event.get("response", {})] == [events[-1]["type"]]
    assert events[-1]["response"]["timings"].keys() == whole["timings"].keys()


def test_timings_without_a_token(server: Server) -> None:
    def script(command: GenerateCommand) -> list[RequestOutput]:
        outputs, at = say("")(command), command.arrived_at
        outputs[-1].timing = RequestTiming(at, at + 0.25, 0.0, at + 1.0)
        return outputs

    server.engine.script = script
    timings = server.complete(echo=True, max_tokens=0)["timings"]
    assert timings["prompt_ms"] == pytest.approx(750)
    assert (timings["predicted_n"], timings["predicted_ms"], timings["predicted_per_second"]) == (0, 0, 0)


@pytest.mark.parametrize("n", [1, 2])
def test_cached_tokens_are_the_same_in_every_event(server: Server, n: int) -> None:
    server.engine.script = say("Hello", cached=16)
    body = {"messages": [{"role": "user", "content": "Hi"}], "n": n}
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = server.events("/v1/chat/completions", {**body, "stream_options": options})
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert {event["usage"]["prompt_tokens_details"]["cached_tokens"] for event in events} == {16}


def test_special_tokens_of_the_tokenizer_can_be_left_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text, add=True: [IM_START] * add + encode(self, text, False))
    prompts = []
    for options in ({}, {"add_special_tokens": True}, {"add_special_tokens": False}):
        server.complete(**options)
        prompts.append(server.engine.last_command().prompt_token_ids)
    assert prompts == [[IM_START, *b"Hi"], [IM_START, *b"Hi"], [*b"Hi"]]


def test_a_refusal_of_the_assistant_is_rendered_as_its_text(server: Server) -> None:
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    server.post("/v1/chat/completions", {"messages": [refusal]})
    assert b"assistant\nNo." in bytes(token for token in server.engine.last_command().prompt_token_ids if token < 256)


EFFORT, SWITCH = "{{ reasoning_effort }}", "{{ enable_thinking is defined and not enable_thinking }}</think>"


@pytest.mark.parametrize(
    ("template", "effort", "kwargs", "said"),
    [
        (EFFORT, "low", {}, "low"),
        (EFFORT, "none", {}, "none"),
        (EFFORT, "low", {"reasoning_effort": "high"}, "high"),
        (SWITCH, "none", {}, "True</think>"),
        (SWITCH, "low", {}, "False</think>"),
        ("no switch</think>", "none", {}, "no switch</think>"),
        ("no thoughts", "none", {}, "no thoughts"),
    ],
)
def test_reasoning_effort_reaches_templates_that_read_it(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    template: str,
    effort: str,
    kwargs: dict[str, str],
    said: str,
) -> None:
    tokenizer = server.service.tokenizer
    chat_template = ChatTemplate(template, tokenizer.special_tokens, tokenizer.control_tokens)
    parts = {
        "chat_template": chat_template,
        "message_format": MessageFormat.choose("auto", "auto", chat_template),
    }
    for name, part in parts.items():
        monkeypatch.setitem(vars(server.service), name, part)
    chat = {"messages": [{"role": "user", "content": "Hi"}], "reasoning_effort": effort}
    response = {"input": "Hi", "reasoning": {"effort": effort}}
    message = {"messages": chat["messages"], "max_tokens": 9, "output_config": {"effort": effort}}
    for path, body in (("/v1/chat/completions", chat), ("/v1/responses", response), ("/v1/messages", message)):
        assert server.post(path, {**body, "chat_template_kwargs": kwargs}).status_code == 200
        assert bytes(server.engine.last_command().prompt_token_ids).decode() == said


def test_the_engine_gets_every_parameter(server: Server) -> None:
    server.complete(
        temperature=0.5, top_p=0.9, top_k=-1, min_p=0.1, seed=7, min_tokens=2, max_tokens=9, presence_penalty=1,
        frequency_penalty=-1, repetition_penalty=1.5, logit_bias={"5": -100}, stop_token_ids=[3], priority=-4,
        logprobs=2,
    )  # fmt: skip
    command = server.engine.last_command()
    sampling = command.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 0, 0.1)
    assert (sampling.seed, sampling.min_tokens, sampling.max_tokens, sampling.logprobs) == (7, 2, 9, 2)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (1, -1, 1.5)
    assert (sampling.logit_bias, sampling.stop_token_ids) == ({5: -100.0}, {3, IM_END})
    assert (command.priority, sampling.prompt_logprobs) == (-4, None)


def test_parameters_default_to_those_of_the_model_or_of_the_api(server: Server) -> None:
    server.complete(ignore_eos=True)
    first = server.engine.last_command().sampling
    assert (first.temperature, first.top_k, first.top_p, first.max_tokens) == (0.6, 20, 1.0, 16)
    assert first.stop_token_ids == frozenset()
    server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]})
    chat = server.engine.last_command()
    assert chat.sampling.max_tokens == READY.max_model_len - len(chat.prompt_token_ids)
    assert chat.sampling.seed != first.seed
    server.complete(prompt="x" * 250)
    assert server.engine.last_command().sampling.max_tokens == 6  # what the context leaves of 16


def test_a_thousand_stop_tokens(server: Server) -> None:
    server.complete(stop_token_ids=[token % 300 for token in range(1000)])
    assert len(server.engine.last_command().sampling.stop_token_ids) == 300


def test_a_tiny_temperature_is_greedy(server: Server) -> None:
    """Logits divided by it would be infinite."""
    server.complete(temperature=1e-40)
    assert server.engine.last_command().sampling.temperature == 0.0


def test_control_tokens_that_users_type_are_text(server: Server) -> None:
    server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "<|im_end|>"}]})
    assert server.engine.last_command().prompt_token_ids.count(IM_END) == 1


def test_a_message_is_continued(server: Server) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hel"}]
    answer = server.post("/tokenize", {"messages": messages, "continue_final_message": True})
    assert bytes(answer.json()["tokens"][-3:]) == b"Hel"
    assert (
        server.post("/v1/chat/completions", {"messages": messages, "continue_final_message": True}).status_code == 200
    )


def test_tokenize_and_back(server: Server) -> None:
    answer = server.post("/tokenize", {"prompt": "Hé<|im_end|>", "return_token_strs": True}).json()
    assert answer["tokens"] == [*"Hé".encode(), IM_END]
    assert (answer["count"], answer["max_model_len"], len(answer["token_strs"])) == (4, 256, 4)
    assert server.post("/detokenize", {"tokens": answer["tokens"]}).json() == {"prompt": "Hé<|im_end|>"}
    for path, body in [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "messages": []}),
        ("/detokenize", {"tokens": [300]}),
    ]:
        status = server.post(path, body).status_code
        assert status == (200 if "messages" in body else 400)


def test_probes(server: Server) -> None:
    def statuses() -> list[int]:
        return [server.get(path).status_code for path in ("/health", "/health/ready", "/health/live")]

    assert statuses() == [200, 200, 200]
    server.engine.ready = None
    assert statuses() == [503, 503, 200]
    server.engine.failure = "no engine any more"
    assert statuses() == [503, 503, 503]
    assert "no engine any more" in server.get("/health").text


def test_a_full_server_is_alive_and_not_ready(server: Server) -> None:
    server.engine.is_full = True
    assert server.get("/health/ready").json() == {"status": "full"}
    assert server.get("/health/ready").status_code == 503
    assert server.get("/health/live").status_code == 200


def test_the_deep_check_asks_the_engine_once_for_many_probes(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep_check, "_KEPT_SECONDS", 0.0)
    assert server.get("/health/deep").status_code == 200
    assert server.engine.last_command().sampling.max_tokens == 1
    server.engine.script = say("", FinishReason.ERROR)
    assert server.get("/health/deep").status_code == 503
    monkeypatch.setattr(deep_check, "_KEPT_SECONDS", 1e9)
    server.engine.script = say("Hi")
    assert [server.get("/health/deep").status_code for _ in range(3)] == [503] * 3
    assert server.engine.commands.qsize() == 1
    monkeypatch.setattr(deep_check, "_KEPT_SECONDS", 0.0)
    assert server.get("/health/deep").status_code == 200


def test_metrics_count_what_usage_says(server: Server) -> None:
    def figures() -> dict[str, float]:
        families = text_string_to_metric_families(server.get("/metrics").text)
        return {
            sample.name + "".join(value for name, value in sample.labels.items() if name != "le"): sample.value
            for family in families
            for sample in family.samples
            if "le" not in sample.labels
        }

    before = figures()
    usages = [server.complete(n=2)["usage"], server.complete(prompt=["a", "bcd"])["usage"]]
    server.events("/v1/completions", {"prompt": "Hi"})
    server.service.metrics.record_step(STATS)
    after = figures()
    change = {name: value - before.get(name, 0.0) for name, value in after.items()}
    assert change["paceline_prompt_tokens_total"] == sum(usage["prompt_tokens"] for usage in usages) + 2
    assert change["paceline_generation_tokens_total"] == sum(usage["completion_tokens"] for usage in usages) + 5
    assert change["paceline_request_success_totallength"] == 5
    assert change["paceline_time_to_first_token_seconds_count"] == 5
    assert change["paceline_inter_token_latency_seconds_count"] == 5 * 4
    assert change["paceline_e2e_request_latency_seconds_count"] == 5
    assert change["paceline_request_queue_time_seconds_sum"] == pytest.approx(5 * 0.25)
    assert change["paceline_request_prefill_time_seconds_sum"] == pytest.approx(5 * 0.75)
    assert change["paceline_request_decode_time_seconds_sum"] == pytest.approx(5 * 2.0)
    assert change["paceline_request_generation_tokens_count"] == 5
    assert change["paceline_request_generation_tokens_sum"] == change["paceline_generation_tokens_total"]
    assert change["paceline_request_prompt_tokens_count"] == 4  # a prompt with two texts is one
    assert change["paceline_request_prompt_tokens_sum"] == change["paceline_prompt_tokens_total"]
    assert change["paceline_request_time_per_output_token_seconds_sum"] == pytest.approx(
        change["paceline_inter_token_latency_seconds_sum"] / 4  # each has four gaps
    )
    assert (after["paceline_num_requests_running"], after["paceline_num_requests_waiting"]) == (3, 2)
    assert after["paceline_kv_cache_usage_ratio"] == 0.5
    assert change["paceline_prefix_cache_hits_total"] == 4
    assert change["paceline_iteration_tokens_sum"] == 7
    assert change["paceline_num_preemptions_total"] == 1


def test_one_log_line_a_request(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server.post("/v1/completions", {"prompt": "Hi", "n": 2}, headers={"X-Request-ID": "job-7"})
    server.post("/v1/completions", {"prompt": 7})
    server.get("/health")
    lines = [record for record in caplog.records if record.name.startswith("app.api") and hasattr(record, "fields")]
    assert len(lines) == 2
    fields = lines[0].fields
    assert fields["request_id"] == "job-7"
    assert (fields["prompt_tokens"], fields["completion_tokens"], fields["finish_reason"]) == (2, 10, "length")
    assert 0 < fields["ttft"] <= fields["duration"]
    assert lines[1].fields["error"] == "invalid_request_error"  # its text may repeat what the client wrote


BODIES = ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"]


@pytest.mark.parametrize("path", BODIES)
def test_openapi_describes_the_bodies(server: Server, path: str) -> None:
    """As a schema that takes the examples it gives, and nothing that the server would not."""
    document = server.get("/openapi.json").json()
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator.check_schema(schema)
    for example in schema.get("examples") or [schema["example"]]:
        jsonschema.validate(example, schema)
        assert server.post(path, example).status_code == 200
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"messages": 7, "prompt": {}, "input": [{"type": "surprise"}]}, schema)
    assert "$ref" not in json.dumps(schema)
    assert MODEL not in json.dumps(document)
