import type { Json, TraceDetail } from "./api";
import { READERS, type NativeDialect } from "./native";

/** One thing a message shows; `place` is the name that rulings give to its text. */
export type Item =
  | { type: "text" | "reasoning" | "refusal"; text: string; place: string }
  | { type: "call"; name: string; arguments: string; id: string; place: string }
  | { type: "media"; what: string; detail?: string };

export interface Turn {
  role: string;
  /** The function whose result a tool message is. */
  name: string;
  items: Item[];
  /** A tool that said that it failed. */
  failed?: boolean;
}

export type Bag = { [key: string]: Json };

export const isBag = (v: Json | undefined): v is Bag => typeof v === "object" && v !== null && !Array.isArray(v);
export const bags = (v: Json | undefined): Bag[] => (Array.isArray(v) ? v.filter(isBag) : []);
export const textOf = (v: Json | undefined): string => (typeof v === "string" ? v : "");

/** JSON text with line breaks, or the text itself where it is no JSON (a cut stream). */
export function pretty(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function contentItems(content: Json | undefined, place: (part: number) => string): Item[] {
  if (typeof content === "string") return content ? [{ type: "text", text: content, place: place(0) }] : [];
  return bags(content).map((part, i): Item => {
    if (typeof part.text === "string") return { type: "text", text: part.text, place: place(i) };
    return { type: "media", what: textOf(part.type) || "part" };
  });
}

function callItems(message: Bag, place: (call: number) => string): Item[] {
  return bags(message.tool_calls).map((call, i) => {
    const f = isBag(call.function) ? call.function : {};
    return { type: "call", name: textOf(f.name), arguments: textOf(f.arguments), id: textOf(call.id), place: place(i) };
  });
}

function requestTurns(request: Bag): Turn[] {
  const names = new Map<string, string>();
  const messages = bags(request.messages);
  if (!messages.length) {
    const list = request.prompt === undefined ? "input" : "prompt";
    const plain = request[list];
    const texts = Array.isArray(plain) ? plain.map((p) => (typeof p === "string" ? p : JSON.stringify(p))) : plain ? [textOf(plain)] : [];
    return texts.map((text, m) => ({ role: "user", name: "", items: [{ type: "text", text, place: `input.${list}.${m}` }] }));
  }
  return messages.map((message, m) => {
    const calls = callItems(message, (c) => `input.${m}.tool.${c}`);
    for (const call of calls) if (call.type === "call") names.set(call.id, call.name);
    return {
      role: textOf(message.role),
      name: names.get(textOf(message.tool_call_id)) ?? textOf(message.name),
      items: [...contentItems(message.content, (p) => `input.${m}.${p}`), ...calls],
    };
  });
}

function answerTurns(answer: Bag): Turn[] {
  return bags(answer.choices).map((choice, i) => {
    const message: Bag = isBag(choice.message) ? choice.message : { content: choice.text ?? null };
    const reasoning = textOf(message.reasoning_content) || textOf(message.reasoning);
    const refusal = textOf(message.refusal);
    const items: Item[] = [];
    if (reasoning) items.push({ type: "reasoning", text: reasoning, place: `output.${i}.reasoning` });
    items.push(...contentItems(message.content, () => `output.${i}.content`));
    if (refusal) items.push({ type: "refusal", text: refusal, place: `output.${i}.refusal` });
    items.push(...callItems(message, (c) => `output.${i}.tool.${c}`));
    return { role: "assistant", name: "", items };
  });
}

/** The conversation of a trace: what the model saw, then what it gave.
 *
 * Bodies in a protocol of their own are read as they are, so that nothing is lost and everything keeps its order. Where a
 * guard marked something, they are shown as the chat that the guard judged: its positions count in that.
 */
export function turnsOf(trace: TraceDetail): { asked: Turn[]; given: Turn[] } {
  const marked = trace.row.rulings.some((r) => r.verdict.findings.length);
  if (trace.row.native && trace.row.dialect !== "openai" && !(marked && trace.chat?.request)) {
    const reader = READERS[trace.row.dialect as NativeDialect];
    return { asked: trace.request ? reader.asked(trace.request) : [], given: trace.answer ? reader.given(trace.answer) : [] };
  }
  const { request, answer } = trace.chat ?? trace;
  return { asked: request ? requestTurns(request) : [], given: answer ? answerTurns(answer) : [] };
}

/** The tools that a request offers, by name; whatever protocol it speaks. */
export function toolsOf(request: Bag | null): string[] {
  return bags(request?.tools).flatMap((tool) => {
    const declared = [...bags(tool.functionDeclarations), ...bags(tool.function_declarations)];
    if (declared.length) return declared.map((d) => textOf(d.name));
    const inner = isBag(tool.function) ? tool.function : isBag(tool.custom) ? tool.custom : tool;
    return [textOf(inner.name) || textOf(tool.type) || Object.keys(tool)[0] || "?"];
  });
}
