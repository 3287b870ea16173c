"""LiteLLM's SDK in a process of its own; see `outside.py`. Each line in: the arguments of `litellm.completion`, and

`stream`: read it as pieces and put them together; `leave`: break off after as many pieces. Out: what became of it.
"""

import json
import sys
import time
from typing import Any

import litellm
import openai

litellm.suppress_debug_info = True


def message(answer: Any) -> dict[str, Any]:
    said = answer.choices[0].message
    calls = [[c.id, c.function.name, c.function.arguments] for c in said.tool_calls or []]
    usage = getattr(answer, "usage", None)
    whole = said.model_dump(exclude_none=True)
    return {
        "text": said.content,
        "calls": calls,
        "finish": answer.choices[0].finish_reason,
        "usage": usage and [usage.prompt_tokens, usage.completion_tokens, usage.total_tokens],
        "message": {k: whole[k] for k in ("role", "content", "tool_calls") if k in whole},
    }


def call(what: dict[str, Any]) -> dict[str, Any]:
    leave = what.pop("leave", 0)
    pieces: list[Any] = []
    try:
        answer = litellm.completion(**what)
        if not what.get("stream"):
            return message(answer)
        for piece in answer:
            pieces.append(piece)
            if leave and len(pieces) == leave:
                left = time.monotonic()
                answer.completion_stream.close()  # LiteLLM's own wrapper has no `close`, and cycles that keep it alive
                return {"left": left}
        return message(litellm.stream_chunk_builder(pieces, messages=what["messages"])) | {"pieces": len(pieces)}
    except openai.OpenAIError as e:  # the base of LiteLLM's own
        text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
        return {"error": type(e).__name__, "status": getattr(e, "status_code", None), "message": str(e), "text": text}


for line in sys.stdin:
    print("> " + json.dumps(call(json.loads(line))), flush=True)
