"""Fields of OpenAI's and vLLM's APIs that Paceline knows, and does not support.

By name, the values that ask for nothing: these are accepted, every other value is refused by name. Null is always
accepted. Each schema has its own table, and what a schema declares needs no entry.
"""

from typing import Any

Unsupported = dict[str, tuple[Any, ...]]

_OPENAI: Unsupported = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": ("in_memory", "in-memory"),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}

_VLLM: Unsupported = {
    "add_special_tokens": (False,),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "cache_salt": (),
    "documents": ([],),
    "early_stopping": (False,),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "include_reasoning": (True,),
    "kv_transfer_params": (),
    "length_penalty": (1.0, 1),
    "logits_processors": ([],),
    "mirostat": (),
    "mm_processor_kwargs": ({},),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "repetition_detection": (),
    "request_id": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stream_interval": (),
    "structural_tag": (),
    "thinking_token_budget": (),
    "truncate_prompt_tokens": (),
    "typical_p": (),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
}

IN_MESSAGES: Unsupported = {
    "annotations": ([],),
    "file": (),
    "image_url": (),
    "input_audio": (),
    "reasoning": ("",),
    "refusal": ("",),
    "video_url": (),
}

IN_STREAM_OPTIONS: Unsupported = {
    "include_obfuscation": (False,),
}

IN_STRUCTURED_OUTPUTS: Unsupported = {
    "disable_additional_properties": (False,),
    "disable_any_whitespace": (False,),
    "disable_fallback": (True, False),
    "structural_tag": (),
    "whitespace_pattern": (),
}

IN_ENCODER_REQUESTS: Unsupported = {
    "add_special_tokens": (True,),
    "embed_dtype": ("float32",),
    "instruction": ("",),
    "max_tokens_per_doc": (),
    "messages": (),
    "normalize": (True,),
    "use_activation": (True,),
}

IN_REQUESTS: Unsupported = _OPENAI | _VLLM

IN_RESPONSES: Unsupported = {
    "access_programs": (),
    "background": (False,),
    "background_options": (),
    "context_management": ([],),
    "conversation": (),
    "image": (),
    "max_tool_calls": (),
    "moderation": (),
    "prompt": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": ("in_memory", "in-memory"),
    "service_tier": ("auto", "default"),
    "stream_options": ({}, {"include_obfuscation": False}),
    "truncation": ("disabled",),
}

IN_RESPONSES_ITEMS: Unsupported = {
    "async": (False,),
    "caller": ({"type": "direct"},),
    "encrypted_content": ("",),
    "namespace": (),
    "phase": ("final_answer",),
}

IN_RESPONSES_REASONING: Unsupported = {
    "generate_summary": (),
    "summary": (),
}

IN_ANTHROPIC: Unsupported = {
    "container": (),
    "context_management": (),
    "diagnostics": (),
    "inference_geo": (),
    "mcp_servers": ([],),
    "output_format": (),
    "service_tier": ("auto", "standard_only"),
    "speed": ("standard",),
    "thread": (),
    "user_profile_id": (),
    "workspace_id": (),
}

IN_ANTHROPIC_BLOCKS: Unsupported = {
    "caller": ({"type": "direct"},),
    "citations": ([],),
    "toolset_name": (),
}

IN_ANTHROPIC_TOOLS: Unsupported = {
    "allowed_callers": (["direct"],),
    "defer_loading": (False,),
    "eager_input_streaming": (True, False),
    "input_examples": ([],),
}


def asks_for_nothing(value: Any, accepted: tuple[Any, ...]) -> bool:
    """Whether a value is among the accepted ones; 0 is not False here."""
    return any(type(value) is type(other) and value == other for other in accepted)
