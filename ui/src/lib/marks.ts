import type { Action, Ruling } from "./api";

/** A stretch of text, `[start, end)` in code points, and what a check said of it. */
export interface Mark {
  start: number;
  end: number;
  check: string;
  label: string;
  action: Action;
  score: number;
}

/** What masking leaves behind: `[EMAIL_1]` on the way to the model, `[EMAIL]` in what is only stored. */
const PLACEHOLDER = /\[([A-Z0-9]+(?:_[A-Z0-9]+)*?)(_\d+)?\]/g;

interface Gap {
  start: number;
  end: number;
  word: string;
  numbered: boolean;
}

const wordOf = (label: string) => label.toUpperCase().replace(/[^A-Z0-9]+/g, "_").replace(/^_|_$/g, "") || "MASKED";

function gapsOf(text: string): Gap[] {
  const found: Gap[] = [];
  let units = 0;
  let points = 0;
  for (const match of text.matchAll(PLACEHOLDER)) {
    points += [...text.slice(units, match.index)].length;
    const size = match[0].length; // ASCII: as many code points
    found.push({ start: points, end: points + size, word: match[1]!, numbered: match[2] !== undefined });
    units = match.index + size;
    points += size;
  }
  return found;
}

/** Findings of one place as marks in its *original* text. */
function found(rulings: Ruling[], place: string): Mark[] {
  return rulings
    .filter((r) => r.place === place && r.action !== "allow")
    .flatMap(({ action, verdict }) => verdict.findings.map((f) => ({ ...f, action, check: verdict.check })))
    .filter((m) => m.end > m.start)
    .sort((a, b) => a.start - b.start || a.end - b.end);
}

/** Overlapping marks as one, named after the longest: masking replaces them together. */
function merged(marks: Mark[]): Mark[] {
  const out: Mark[] = [];
  for (const mark of marks) {
    const last = out.at(-1);
    if (!last || mark.start >= last.end) out.push({ ...mark });
    else {
      const named = mark.end - mark.start > last.end - last.start ? mark : last;
      out[out.length - 1] = { ...named, start: last.start, end: Math.max(last.end, mark.end) };
    }
  }
  return out;
}

/**
 * The marks of one place in the text as it is *stored*. Verdicts count in the text before any action, but
 * what was masked or refused has been replaced since: each such finding is moved onto the placeholder that
 * stands exactly where it must. If one is not there, positions cannot be trusted (JSON arguments, a text
 * that was cut), and only the placeholders themselves are marked.
 */
export function marksOf(text: string, rulings: Ruling[], place: string): Mark[] {
  const all = found(rulings, place);
  const gaps = gapsOf(text);
  const moved: Mark[] = [];
  const shifts: { from: number; by: number }[] = [];
  let shift = 0;
  let sure = true;
  const acted = merged(all.filter((m) => m.action !== "flag"));
  for (const mark of acted) {
    const gap = gaps.find((g) => g.start === mark.start + shift);
    if (gap) {
      moved.push({ ...mark, start: gap.start, end: gap.end });
      shift += gap.end - gap.start - (mark.end - mark.start);
      shifts.push({ from: mark.end, by: shift });
    } else if (mark.action === "block") {
      moved.push({ ...mark, start: mark.start + shift, end: mark.end + shift });
    } else sure = false;
  }
  if (!sure) moved.length = 0;
  else {
    const shiftAt = (at: number) => shifts.findLast((s) => s.from <= at)?.by ?? 0;
    for (const mark of all) {
      if (mark.action !== "flag" || acted.some((a) => a.start < mark.end && mark.start < a.end)) continue;
      moved.push({ ...mark, start: mark.start + shiftAt(mark.start), end: mark.end + shiftAt(mark.end) });
    }
  }
  const words = new Set(rulings.filter((r) => r.action === "mask").flatMap((r) => [r.verdict.check, ...r.verdict.findings.map((f) => f.label)].map(wordOf)));
  for (const { start, end, word, numbered } of gaps) {
    if ((numbered || words.has(word)) && !moved.some((m) => m.start < end && start < m.end)) moved.push({ start, end, check: "", label: "", action: "mask", score: 1 });
  }
  const length = [...text].length;
  return moved.filter((m) => m.end <= length).sort((a, b) => a.start - b.start);
}

export interface Piece {
  text: string;
  mark: Mark | null;
}

export interface Block {
  code: boolean;
  language: string;
  pieces: Piece[];
}

/** Text cut at ``` fences and at marks, ready to be drawn. Overlapping marks: the first begun wins. */
export function blocksOf(text: string, marks: Mark[]): Block[] {
  const points = [...text];
  const blocks: Block[] = [];
  let from = 0;
  const fence = /^[ \t]*```([^\n`]*)\n([\s\S]*?)(?:\n[ \t]*```[ \t]*(?:\n|$)|$(?![\s\S]))/gmu;
  const pointAt = (unit: number) => [...text.slice(0, unit)].length;
  for (const match of text.matchAll(fence)) {
    const begin = pointAt(match.index);
    const inside = pointAt(match.index + match[0].indexOf("\n") + 1);
    const size = [...match[2]!].length;
    if (begin > from) blocks.push({ code: false, language: "", pieces: cut(points, from, begin, marks) });
    blocks.push({ code: true, language: match[1]!.trim(), pieces: cut(points, inside, inside + size, marks) });
    from = pointAt(match.index + match[0].length);
  }
  if (from < points.length || blocks.length === 0) blocks.push({ code: false, language: "", pieces: cut(points, from, points.length, marks) });
  for (const block of blocks) if (!block.code && blocks.length > 1) trim(block.pieces);
  return blocks.filter((b) => b.code || b.pieces.length || blocks.length === 1);
}

/** Take away the blank lines between text and a code block, which has its own distance. */
function trim(pieces: Piece[]): void {
  const first = pieces[0];
  const last = pieces.at(-1);
  if (first && !first.mark) first.text = first.text.replace(/^\n+/, "");
  if (last && !last.mark) last.text = last.text.replace(/\n+$/, "");
  if (last && !last.text) pieces.pop();
}

/** The two inline marks of Markdown worth showing in a chat: `code` and **strong**. */
export function inline(text: string): { text: string; tag: "code" | "strong" | "" }[] {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).map((part) => {
    if (part.length > 2 && part.startsWith("`")) return { text: part.slice(1, -1), tag: "code" };
    if (part.length > 4 && part.startsWith("**")) return { text: part.slice(2, -2), tag: "strong" };
    return { text: part, tag: "" };
  });
}

function cut(points: string[], from: number, to: number, marks: Mark[]): Piece[] {
  const pieces: Piece[] = [];
  let at = from;
  for (const mark of marks) {
    const start = Math.max(mark.start, at);
    const end = Math.min(mark.end, to);
    if (end <= start) continue;
    if (start > at) pieces.push({ text: points.slice(at, start).join(""), mark: null });
    pieces.push({ text: points.slice(start, end).join(""), mark });
    at = end;
  }
  if (at < to) pieces.push({ text: points.slice(at, to).join(""), mark: null });
  return pieces;
}
