import type { Moment } from "./model";
import { clock, count, day, dollars, duration, NONE } from "./format";

/** Day, where it is not today, and local time to the minute. */
export function when(moment: Moment): string {
  const ns = String(moment);
  return ns === "0" ? NONE : [day(ns), clock(ns).slice(0, 5)].filter(Boolean).join(" ");
}

/** A share as percent: `39.7 %`. */
export const share = (value: number, digits = 1) => `${(100 * value).toFixed(digits)} %`;

/** A difference of shares in points: `+27.9`. */
export const points = (value: number, digits = 1) => `${value < 0 ? "−" : "+"}${Math.abs(100 * value).toFixed(digits)}`;

/** Seconds as people read them. */
export const seconds = (s: number | null | undefined) => (s === null || s === undefined ? NONE : duration(Math.round(s * 1e9)));

/** What a figure of an evaluation is measured in. */
export function unitOf(name: string): "ms" | "usd" | "share" {
  return name.endsWith("_ms") ? "ms" : name.endsWith("_usd") ? "usd" : "share";
}

/** A figure of an evaluation in its unit. */
export function figure(name: string, value: number): string {
  const unit = unitOf(name);
  return unit === "ms" ? duration(Math.round(value * 1e6)) : unit === "usd" ? dollars(value) : share(value);
}

/** A p-value: never rounded to zero. */
export const chance = (p: number) => (p < 0.001 ? "< 0.001" : p.toFixed(3));

/** An e-value or another positive number of any size. */
export const times = (e: number) => (e >= 1e6 ? "> 1,000,000" : e >= 100 ? count(Math.round(e)) : e.toPrecision(2));

/** A setting or a finding as `name: value` pairs of text; what is empty is left out. */
export function pairs(value: unknown, prefix = ""): [string, string][] {
  if (value === null || value === undefined || value === "" || value === false) return [];
  if (Array.isArray(value)) {
    const texts = value.map((v) => (v && typeof v === "object" ? Object.values(v).filter((x) => typeof x !== "object").join(" ") : String(v)));
    return texts.length ? [[prefix, texts.join(", ")]] : [];
  }
  if (typeof value === "object") return Object.entries(value).flatMap(([k, v]) => pairs(v, prefix ? `${prefix}.${k}` : k));
  return [[prefix, value === true ? "✓" : typeof value === "number" && !Number.isInteger(value) ? String(+value.toPrecision(4)) : String(value)]];
}

/** Who made or began something: a refresh by the end of its long name, and where it is. */
export function maker(by: string): { text: string; href: string } {
  if (by.startsWith("refresh:")) return { text: `refresh …${by.slice(-8)}`, href: `/refreshes/${by.slice("refresh:".length)}` };
  return { text: by === "file" ? "noria.yaml" : by, href: "" };
}
