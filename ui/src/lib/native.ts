/** Conversations in the caller's own protocol: Anthropic's Messages, OpenAI's Responses, Gemini. What is not known keeps its name. */
import type { Json } from "./api";
import { bags, isBag, textOf, type Bag, type Item, type Turn } from "./chat";

export type NativeDialect = "anthropic" | "responses" | "gemini";
type Reader = { asked: (request: Bag) => Turn[]; given: (answer: Bag) => Turn[] };

const text = (value: string): Item => ({ type: "text", text: value, place: "" });
const reasoning = (value: string): Item => ({ type: "reasoning", text: value, place: "" });
const media = (what: string, detail = ""): Item => ({ type: "media", what, detail });
const call = (name: string, args: Json | undefined, id: string): Item => ({
  type: "call", name, arguments: typeof args === "string" ? args : JSON.stringify(args ?? {}), id, place: "",
});

/** A value as a reader wants it: a text, the texts of its parts, or JSON. */
function said(value: Json | undefined, part: (p: Bag) => Item): Item[] {
  if (typeof value === "string") return value ? [text(value)] : [];
  if (Array.isArray(value)) return bags(value).map(part);
  return value === undefined || value === null ? [] : [text(JSON.stringify(value))];
}

/** Collects turns. What an assistant says in a row is one turn, also where it comes as several items. */
class Talk {
  readonly turns: Turn[] = [];
  private readonly names = new Map<string, string>();
  private open = false;

  /** Read messages one after the other. */
  read(messages: Bag[], one: (message: Bag) => void): Turn[] {
    for (const message of messages) {
      this.open = false;
      one(message);
    }
    return this.turns;
  }

  say(role: string, items: Item[]): void {
    if (!items.length) return;
    for (const item of items) if (item.type === "call") this.names.set(item.id, item.name);
    const last = this.turns.at(-1);
    if (last?.role === role && (this.open || role === "assistant")) last.items.push(...items);
    else this.turns.push({ role, name: "", items });
    this.open = true;
  }

  /** What a tool gave back, under the name by which it was called. */
  result(id: string, items: Item[], { name = "", failed = false } = {}): void {
    this.turns.push({ role: "tool", name: this.names.get(id) ?? (name || id), items, failed });
    this.open = false;
  }
}

// -- Anthropic ------------------------------------------------------------------------------------------

function block(b: Bag): Item {
  const type = textOf(b.type);
  if (typeof b.text === "string") return text(b.text);
  if (type === "thinking") return reasoning(textOf(b.thinking));
  if (type.endsWith("tool_use")) return call(textOf(b.name), b.input, textOf(b.id));
  const source = isBag(b.source) ? b.source : {};
  return media(type || "part", textOf(source.media_type) || textOf(source.url) || textOf(source.file_id));
}

function blocks(talk: Talk, role: string, content: Json | undefined): void {
  if (!Array.isArray(content)) return talk.say(role, said(content, block));
  for (const b of bags(content)) {
    if (textOf(b.type).endsWith("tool_result")) talk.result(textOf(b.tool_use_id), said(b.content, block), { failed: b.is_error === true });
    else talk.say(role, [block(b)]);
  }
}

const anthropic: Reader = {
  asked(request) {
    const talk = new Talk();
    talk.say("system", said(request.system, block));
    return talk.read(bags(request.messages), (m) => blocks(talk, textOf(m.role), m.content));
  },
  given(answer) {
    const talk = new Talk();
    return talk.read([answer], (a) => blocks(talk, "assistant", a.content));
  },
};

// -- Responses ------------------------------------------------------------------------------------------

function part(p: Bag): Item {
  const type = textOf(p.type);
  if (typeof p.text === "string") return text(p.text);
  if (typeof p.refusal === "string") return { type: "refusal", text: p.refusal, place: "" };
  return media(type || "part", textOf(p.filename) || textOf(p.file_id) || kindOfUrl(textOf(p.image_url)));
}

/** Of a data URL its media type, else the address. */
const kindOfUrl = (url: string) => (url.startsWith("data:") ? url.slice(5).split(/[;,]/)[0]! : url);

function item(talk: Talk, it: Bag): void {
  const type = textOf(it.type) || "message";
  const id = textOf(it.call_id) || textOf(it.id);
  if (type === "message") talk.say(textOf(it.role) || "user", said(it.content, part));
  else if (type === "reasoning") {
    const thoughts = [...bags(it.summary), ...bags(it.content)].map((p) => textOf(p.text)).filter(Boolean);
    talk.say("assistant", thoughts.map(reasoning));
  } else if (type.endsWith("_output")) talk.result(id, said(it.output, part), { name: type.replace(/_call_output$/, "") });
  else if (type.endsWith("_call")) talk.say("assistant", [call(textOf(it.name) || type.replace(/_call$/, ""), it.arguments ?? it.input ?? it.action, id)]);
  else talk.say("assistant", [media(type, textOf(it.id))]);
}

const responses: Reader = {
  asked(request) {
    const talk = new Talk();
    talk.say("system", said(request.instructions, part));
    if (!Array.isArray(request.input)) talk.say("user", said(request.input, part));
    return talk.read(bags(request.input), (it) => item(talk, it));
  },
  given(answer) {
    const talk = new Talk();
    return talk.read(bags(answer.output), (it) => item(talk, it));
  },
};

// -- Gemini ---------------------------------------------------------------------------------------------

const ROLE: Record<string, string> = { model: "assistant", function: "user" };

/** What is not known, by its name. */
const oddity = (p: Bag): Item => media(Object.keys(p)[0] ?? "part");

function piece(talk: Talk, role: string, p: Bag): void {
  const called = p.functionCall;
  const gave = p.functionResponse;
  const blob = isBag(p.inlineData) ? p.inlineData : isBag(p.fileData) ? p.fileData : null;
  if (isBag(called)) talk.say(role, [call(textOf(called.name), called.args, textOf(called.id) || textOf(called.name))]);
  else if (isBag(gave)) talk.result(textOf(gave.id) || textOf(gave.name), said(gave.response, oddity), { name: textOf(gave.name) });
  else if (blob) talk.say(role, [media(textOf(blob.mimeType).split("/")[0] || "file", textOf(blob.fileUri) || textOf(blob.mimeType))]);
  else if (typeof p.text === "string") talk.say(role, [p.thought === true ? reasoning(p.text) : text(p.text)]);
  else talk.say(role, [oddity(p)]);
}

function content(talk: Talk, role: string, value: Json | undefined): void {
  for (const p of bags(isBag(value) ? value.parts : value)) piece(talk, role, p);
}

const gemini: Reader = {
  asked(request) {
    const talk = new Talk();
    content(talk, "system", request.systemInstruction ?? request.system_instruction);
    const contents = typeof request.contents === "string" ? [{ parts: [{ text: request.contents }] }] : bags(request.contents);
    return talk.read(contents, (c) => content(talk, ROLE[textOf(c.role)] ?? (textOf(c.role) || "user"), c));
  },
  given: (answer) =>
    bags(answer.candidates).flatMap((candidate) => {
      const talk = new Talk(); // each candidate is an answer of its own
      return talk.read([candidate], (c) => content(talk, "assistant", c.content));
    }),
};

export const READERS: Record<NativeDialect, Reader> = { anthropic, responses, gemini };
