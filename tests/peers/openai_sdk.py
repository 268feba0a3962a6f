"""OpenAI's Python SDK against the gateway: openai_sdk.py BASE_URL [MODEL_SERVER]."""

import asyncio
import json
import sys
import time
import urllib.request

import openai

base_url = sys.argv[1]
model_server = sys.argv[2] if len(sys.argv) > 2 else None
client = openai.OpenAI(base_url=base_url, api_key="none needed", max_retries=0, timeout=30)


def say(what):
    print(f"openai-python: {'model server' if model_server else 'built-in model'}: {what}", flush=True)


def ask(text, **options):
    return client.chat.completions.create(**{"model": model, "messages": [{"role": "user", "content": text}], **options})


def raised(kind, call):
    """The typed exception that a call must raise."""
    try:
        call()
    except openai.APIError as error:
        assert type(error) is kind, f"{type(error)} instead of {kind}: {error}"
        return error
    raise AssertionError(f"{kind} was not raised")


def calls():
    with urllib.request.urlopen(f"{model_server}/sim/calls", timeout=10) as answer:
        return json.load(answer)


def eventually(what, condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"not in 10 s: {what}"
        time.sleep(0.01)


models = [m.id for m in client.models.list()]
assert models, "no models"
model = models[0]
assert client.models.retrieve(model).id == model

whole = ask("hello")
assert whole.object == "chat.completion" and whole.model == model and whole.choices[0].finish_reason == "stop"
answer = whole.choices[0].message.content
assert answer and whole.choices[0].message.role == "assistant"
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens > 0
if not model_server:
    assert answer.startswith("You said: hello"), answer

chunks = list(ask("hello", stream=True))
assert len({c.id for c in chunks}) == 1 and all(c.object == "chat.completion.chunk" and c.usage is None for c in chunks)
assert "".join(c.choices[0].delta.content or "" for c in chunks) == answer
assert chunks[0].choices[0].delta.role == "assistant"
assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"]
assert len(chunks) > 5, "the stream came in one piece"

chunks = list(ask("hello", stream=True, stream_options={"include_usage": True}))
assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == whole.usage.total_tokens
assert all(c.usage is None for c in chunks[:-1])
say("models, chat completions whole and streamed, with usage")

text = client.completions.create(model=model, prompt="hello")
assert text.object == "text_completion" and text.choices[0].text and text.choices[0].finish_reason == "stop"
pieces = list(client.completions.create(model=model, prompt="hello", stream=True))
assert "".join(p.choices[0].text for p in pieces if p.choices) == text.choices[0].text
say("completions whole and streamed")

if model_server:
    # The built-in model answers to any name.
    error = raised(openai.NotFoundError, lambda: ask("x", model="no-such-model"))
    assert error.status_code == 404 and error.code == "not_found" and "no-such-model" in error.message
raised(openai.NotFoundError, lambda: client.models.retrieve("no-such-model"))
error = raised(openai.BadRequestError, lambda: ask("", messages="not a list"))
assert error.status_code == 400 and error.type == "invalid_request_error"
# A model server behind refuses in words of its own.
assert model_server or error.code == "invalid_request"
raised(openai.BadRequestError, lambda: ask("", messages=[]))
raised(openai.BadRequestError, lambda: ask("x", n=2, extra_headers={"x-session-id": "py-n"}))
tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
raised(openai.BadRequestError, lambda: ask("x", tools=tools, extra_headers={"x-session-id": "py-tools"}))
say("errors are the SDK's typed exceptions")

session = {"x-session-id": "py-session"}
first = ask("remember me", extra_headers={**session, "Idempotency-Key": "py-turn-1"})
again = ask("remember me", extra_headers={**session, "Idempotency-Key": "py-turn-1"})
assert first.choices[0].message.content == again.choices[0].message.content and first.id == again.id
conflict = raised(openai.ConflictError, lambda: ask("other words", extra_headers={**session, "Idempotency-Key": "py-turn-1"}))
assert conflict.code == "turn_conflict" and conflict.response.headers["x-should-retry"] == "false"
streamed = list(ask("second", stream=True, extra_headers=session))
assert "".join(c.choices[0].delta.content or "" for c in streamed if c.choices)
with urllib.request.urlopen(f"{base_url}/sessions/py-session", timeout=10) as response:
    turns = json.load(response)["turns"]
assert [t["text"] for t in turns] == ["remember me", "second"] and all(t["state"] == "done" for t in turns), turns
say("x-session-id joins a session, Idempotency-Key makes a repeat the same turn")


async def many():
    """Streams side by side on one asynchronous client, each with its own text."""
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none needed", max_retries=0, timeout=30) as together:

        async def one(number):
            stream = await together.chat.completions.create(
                model=model, messages=[{"role": "user", "content": f"number {number}"}], stream=True
            )
            got = "".join([c.choices[0].delta.content or "" async for c in stream])
            assert got if model_server else got.startswith(f"You said: number {number}\n"), got

        await asyncio.gather(*(one(number) for number in range(20)))


asyncio.run(many())
say("20 streams side by side")

long = "one " * 2_000
with ask(long, stream=True, max_tokens=1_000) as stream:
    for chunk in stream:
        if chunk.choices[0].delta.content:
            break
if model_server:
    eventually("the model server's call is cancelled", lambda: calls()["cancelled"] >= 1)
    eventually("no call is left", lambda: calls()["in_flight"] == 0)
assert ask("still there?").choices[0].message.content
say("a stream that is left is cancelled")
