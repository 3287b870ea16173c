import { ApiError } from "./api";
import { session } from "./session.svelte";
import { events } from "./sse";

export interface Said {
  role: "user" | "assistant";
  content: string;
  reasoning: string;
  state: "done" | "streaming" | "stopped" | "failed";
  error: string;
  code: string;
  /** Exchange id, = `x-request-id`. */
  exchange: string;
  ttft_ms: number | null;
  per_second: number | null;
  /** Whether the token count is the server's (else chunks were counted). */
  counted: boolean;
}

export interface Settings {
  temperature: number | null;
  max_tokens: number | null;
}

interface Chunk {
  choices?: { delta?: { content?: string | null; reasoning_content?: string | null; refusal?: string | null } }[];
  usage?: { completion_tokens?: number } | null;
  error?: { message: string; code?: string | null };
}

const KEY = "noria.conversation";
const FIRST_WAIT = 2;

const said = (role: Said["role"], content: string): Said => ({
  role, content, reasoning: "", state: "done", error: "", code: "", exchange: "", ttft_ms: null, per_second: null, counted: false,
});

function restore(): Said[] {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEY) ?? "[]") as Said[];
    return kept.map((s) => ({ ...s, state: s.state === "streaming" ? "stopped" : s.state }));
  } catch {
    return [];
  }
}

/** One chat with one app, kept in this tab alone. */
export class Conversation {
  turns = $state<Said[]>(restore());
  busy = $state(false);
  /** Seconds until the next try while the model loads; null when not waiting. */
  waiting = $state<number | null>(null);
  private control = new AbortController();

  clear(): void {
    this.stop();
    this.turns = [];
    this.save();
  }

  stop(): void {
    this.control.abort();
  }

  async send(app: string, text: string, settings: Settings): Promise<void> {
    this.turns.push(said("user", text), { ...said("assistant", ""), state: "streaming" });
    await this.answer(app, settings);
  }

  /** Ask again for the last answer. */
  async again(app: string, settings: Settings): Promise<void> {
    this.turns[this.turns.length - 1] = { ...said("assistant", ""), state: "streaming" };
    await this.answer(app, settings);
  }

  private async answer(app: string, settings: Settings): Promise<void> {
    const turn = this.turns.at(-1)!;
    this.control = new AbortController();
    this.busy = true;
    try {
      await this.stream(await this.open(app, settings), turn);
      turn.state = "done";
    } catch (e) {
      if (this.control.signal.aborted) turn.state = "stopped";
      else {
        const error = session.meet(e);
        Object.assign(turn, { state: "failed", error: [error.message, error.hint].filter(Boolean).join(" "), code: error.code });
      }
    } finally {
      this.busy = false;
      this.waiting = null;
      this.save();
    }
  }

  /** The response, after waiting for a model that is still loading. */
  private async open(app: string, settings: Settings): Promise<{ response: Response; sent: number }> {
    const turn = this.turns.at(-1)!;
    const messages = this.turns
      .slice(0, -1)
      .filter((t) => t.content && t.state !== "failed")
      .map(({ role, content }) => ({ role, content }));
    const chosen = Object.fromEntries(Object.entries(settings).filter(([, v]) => v !== null));
    const body = JSON.stringify({ model: app, messages, stream: true, stream_options: { include_usage: true }, ...chosen });
    for (;;) {
      const sent = performance.now();
      let response: Response;
      try {
        response = await fetch("/v1/chat/completions", {
          method: "POST", credentials: "same-origin", headers: { "content-type": "application/json" }, body, signal: this.control.signal,
        });
      } catch (e) {
        if (this.control.signal.aborted) throw e;
        throw new ApiError(0, "");
      }
      turn.exchange = response.headers.get("x-request-id") ?? "";
      if (response.ok) return { response, sent };
      const error = await ApiError.from(response);
      if (error.status !== 503 || !response.headers.has("retry-after")) throw error;
      await this.wait(Math.ceil(error.retryAfter || FIRST_WAIT));
    }
  }

  private async wait(seconds: number): Promise<void> {
    for (this.waiting = seconds; this.waiting > 0; this.waiting -= 1) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, 1000);
        this.control.signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
      });
      this.control.signal.throwIfAborted();
    }
    this.waiting = 0;
  }

  private async stream({ response, sent }: { response: Response; sent: number }, turn: Said): Promise<void> {
    this.waiting = null;
    let first = 0;
    let chunks = 0;
    let ended = false;
    for await (const data of events(response.body!)) {
      if (data === "[DONE]") {
        ended = true;
        break;
      }
      const chunk = JSON.parse(data) as Chunk;
      if (chunk.error) throw new ApiError(response.status, chunk.error.message, chunk.error.code ?? "");
      const delta = chunk.choices?.[0]?.delta;
      const text = delta?.content ?? delta?.refusal ?? "";
      if (text || delta?.reasoning_content) {
        first ||= performance.now();
        turn.ttft_ms ??= first - sent;
        chunks += 1;
        turn.content += text;
        turn.reasoning += delta?.reasoning_content ?? "";
      }
      const counted = chunk.usage?.completion_tokens;
      const seconds = (performance.now() - first) / 1000;
      // The first token's own time is in TTFT: what follows it is the speed.
      if (first && seconds > 0) turn.per_second = ((counted ?? chunks) - 1) / seconds || null;
      if (counted !== undefined) turn.counted = true;
    }
    if (!ended) throw new ApiError(response.status, "", "stream_cut");
  }

  private save(): void {
    try {
      sessionStorage.setItem(KEY, JSON.stringify(this.turns));
    } catch {
      /* full or refused: the conversation lives as long as the page */
    }
  }
}

export const conversation = new Conversation();
