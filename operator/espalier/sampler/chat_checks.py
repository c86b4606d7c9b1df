"""Refuses fields of a chat that this server would silently ignore."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from espalier.sampler import completion_body

# Fields of a request; as keyword arguments of the template they would escape their checks.
OWN_FIELDS = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


def refusal(
    request: Any, variables: Collection[str], *, calls_tools: bool, thinks: bool
) -> tuple[str, str] | None:
    """Field and message of what cannot be honoured; None if all can.

    Args:
        request: vLLM's ChatCompletionRequest.
        variables: that the chat template reads.
        calls_tools: whether a parser of tool calls is set.
        thinks: whether a parser of reasoning is set.
    """
    if request.tools and request.tool_choice not in (None, "none") and not calls_tools:
        return "tools", (
            "tools need a parser of tool calls, and none is known for this base: set "
            "spec.rollout.toolCallParser of the TrainableModel, or send tool_choice none"
        )
    if thinks and not request.include_reasoning and (request.return_token_ids or request.logprobs):
        return "include_reasoning", (
            "include_reasoning false hides token ids and log-probs: leave out either"
        )
    return next(_unread(request, variables), None)


def _unread(request: Any, variables: Collection[str]) -> Iterator[tuple[str, str]]:
    """The arguments that the chat template does not read."""
    for name in request.chat_template_kwargs or {}:
        field = f"chat_template_kwargs.{name}"
        if name in OWN_FIELDS:
            yield field, f"{field} is a field of the request: send it as {name}"
        elif name != "chat_template" and name not in variables:
            used = ", ".join(sorted(set(variables) - OWN_FIELDS)) or "none"
            yield field, f"the chat template does not use {field}; it uses: {used}"
    if request.documents is not None and "documents" not in variables:
        yield "documents", "the chat template does not use documents: leave them out"
    effort = request.reasoning_effort
    # vLLM turns thinking off for none where a template knows that much.
    off = effort == "none" and "enable_thinking" in variables
    if effort is not None and "reasoning_effort" not in variables and not off:
        yield (
            "reasoning_effort",
            f"the chat template does not use reasoning_effort {effort}: leave it out",
        )


def leave_free(tool_parser: Any) -> None:
    """Makes a model with tool_choice auto sample freely, so that it can be trained on the result.

    Some of vLLM's parsers bind the form of every call to a grammar, unless a tool asks for it.
    """
    tool_parser.default_tool_strict_level = None


def install(serving: Any, taken: Collection[str]) -> None:
    """Makes vLLM's chat route refuse; ``serving`` is its OpenAIServingChat.

    ``taken`` are the fields that others than vLLM read.
    """
    from vllm.renderers.hf import _cached_resolve_chat_template_kwargs  # noqa: PLC0415

    render, parser = serving.render_chat_request, serving.online_renderer.parser
    tokenizer = serving.renderer.tokenizer
    template = getattr(tokenizer, "chat_template", None)
    templates = template.values() if isinstance(template, dict) else [template or ""]
    variables = frozenset[str]().union(*map(_cached_resolve_chat_template_kwargs, templates))
    calls_tools = parser is not None and parser.tool_parser_cls is not None
    thinks = parser is not None and parser.reasoning_parser_cls is not None
    if calls_tools:
        leave_free(parser.tool_parser_cls)

    async def render_checked(request: Any) -> Any:
        refused = completion_body.refusal(request, taken) or refusal(
            request, variables, calls_tools=calls_tools, thinks=thinks
        )
        if refused is not None:
            field, message = refused
            return serving.create_error_response(message, param=field)
        completion_body.fit(request, serving.model_config.max_model_len)
        return await render(request)

    serving.render_chat_request = render_checked


def install_plain(serving: Any) -> None:
    """The same for completions of a prompt; ``serving`` is vLLM's OpenAIServingCompletion."""
    render = serving.render_completion_request

    async def render_checked(request: Any) -> Any:
        refused = completion_body.refusal(request)
        if refused is not None:
            field, message = refused
            return serving.create_error_response(message, param=field)
        completion_body.fit(request, serving.model_config.max_model_len)
        return await render(request)

    serving.render_completion_request = render_checked
