/** The management API as this console reads it. Times are ns; `time_ns` is text because it exceeds 2^53. */

export type Outcome = "ok" | "blocked" | "refused" | "error" | "cancelled";
export type Action = "allow" | "flag" | "mask" | "block";

export interface RulingSummary {
  check: string;
  action: Action;
  label_counts: Record<string, number>;
}

export interface Row {
  id: string;
  trace: string;
  time_ns: string;
  app: string;
  release: string;
  release_name: string;
  kind: "chat" | "completion" | "embedding";
  stream: boolean;
  status: number;
  outcome: Outcome;
  endpoint: string;
  provider: string;
  served_model: string;
  duration_ns: number;
  ttft_ns: number | null;
  overhead_ns: number;
  tokens_in: number | null;
  tokens_out: number | null;
  cost_usd: number | null;
  cost_status: "exact" | "estimated" | "unknown";
  key: string;
  conversation: string;
  error_code: string;
  error_message: string;
  preview_in?: string;
  preview_out?: string;
  rulings: RulingSummary[];
}

export interface Finding {
  label: string;
  start: number;
  end: number;
  score: number;
}

export interface Ruling {
  verdict: { check: string; passed: boolean; score: number; findings: Finding[]; reason: string };
  action: Action;
  place: string;
  took_ns: number;
}

export interface StageTime {
  name: string;
  offset_ns: number;
  took_ns: number;
}

export interface Attempt {
  endpoint: string;
  offset_ns: number;
  took_ns: number;
  status: number | null;
  error: string;
}

export interface Usage {
  input: number | null;
  output: number | null;
  cached: number;
  reasoning: number;
}

export interface FullRow extends Omit<Row, "rulings"> {
  stages: StageTime[];
  attempts: Attempt[];
  rulings: Ruling[];
  usage: Usage | null;
  config: string;
  span: string;
  parent_span: string;
  worker: string;
  cut_tokens: number;
  finish_reason: string;
  upstream_id: string;
  subject: string;
  org?: string;
  team?: string;
  user?: string;
  tags?: Record<string, string>;
  /** The protocol that the caller spoke. */
  dialect?: "openai" | "anthropic" | "responses" | "gemini";
  /** Whether the bodies are in that protocol. */
  native?: boolean;
  cache?: "" | "hit" | "semantic" | "joined";
  /** What could not be carried over into the model's protocol. */
  warnings?: string[];
}

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

export interface TraceDetail {
  row: FullRow;
  request: { [key: string]: Json } | null;
  answer: { [key: string]: Json } | null;
  /** Bodies in the caller's own dialect, as chat; null where they are chat already. */
  chat?: { request: { [key: string]: Json } | null; answer: { [key: string]: Json } | null } | null;
  answer_is_sse: boolean;
  bodies: "stored" | "off" | "erased" | "none";
  /** What was said of the answer; absent from older keepers. */
  feedback?: Said[];
}

/** One piece of feedback. */
export interface Said {
  id: string;
  kind: "thumb" | "score" | "label" | "correction";
  metric: string;
  value: number | null;
  text: string;
  comment: string;
  by: string;
  key: string;
  time_ns: string;
  note: string;
  erased: boolean;
}

export interface Page {
  rows: Row[];
  next: string | null;
  total: number;
}

export interface Status {
  version: string;
  ready?: boolean;
  models: { name: string; provider: string; model: string; state: "ready" | "loading" | "failed" | "absent"; detail: string }[];
  apps: { name: string; release: string; release_id: string; description: string; model: string }[];
  recorder: { lag_records: number; lag_seconds: number; dropped: number; alarm: string | null };
  workers?: {
    name: string;
    pid: number;
    seen_seconds_ago: number;
    config: string;
    trouble: string;
    in_flight: number;
    draining: boolean;
    spool: { dropped: number; pending: number; alarm: string | null };
  }[];
  keys_required: boolean;
  notices: { level: string; text: string; code: string }[];
}

export interface Key {
  id: string;
  name: string;
  hint: string;
  state: "active" | "disabled" | "expired";
  apps: string[];
  endpoints: string[];
  guard: string;
  org: string;
  team: string;
  user: string;
  tags: Record<string, string>;
  metadata: Record<string, string>;
  budget_usd: number | null;
  leased_usd: number | null;
  rpm: number | null;
  created_ns: string;
  expires_ns: string | null;
  overlap_until_ns: string | null;
  last_used_ns: string | null;
}

/** A key with its text, which is shown once. */
export interface FreshKey extends Key {
  key: string;
}

/** Whether keys are asked for, and what a key may be limited to. */
export interface Access {
  keys_required: boolean;
  closed_by_a_key: boolean;
  apps: string[];
  guards: string[];
}

export type Kind = "org" | "team" | "user";

export interface Member {
  name: string;
  title: string;
  metadata: Record<string, string>;
  /** Absent on organisations. */
  org?: string;
  /** Users only. */
  teams?: string[];
  live_keys: number;
  created_ns: string;
}

export type CostGroup = "model" | "app" | "key" | "org" | "team" | "user" | "tag" | "provider" | "endpoint";

/** Sums over a group of exchanges. */
export interface Total {
  exchanges: number;
  /** Of those whose cost is known. */
  cost_usd: number;
  unknown: number;
  estimated: number;
  tokens_in: number;
  tokens_out: number;
  cached: number;
}

export interface Costs {
  /** The values of what was grouped by stand beside the sums, under their names. */
  groups: (Total & Record<string, string | number>)[];
  total: Total | null;
}

export interface Spared {
  saved_usd: number;
  events: Record<string, number>;
}

export type BudgetWindow = "day" | "week" | "month" | "total";

export interface Budget {
  id: string;
  scope: string;
  usd: number;
  window: BudgetWindow;
  zone: string;
  hard: boolean;
  /** Shares of the limit. */
  alerts: number[];
  used_usd: number;
  reserved_usd: number;
  left_usd: number;
  /** ISO 8601; null where it never begins anew. */
  resets: string | null;
  source: "api" | "key" | "noria.yaml";
}

/** One unit of a limit now: `used` + `leased` + `left` is the limit, unless it was lowered. */
export interface LimitUse {
  unit: "requests" | "tokens" | "concurrent";
  limit: number;
  used: number;
  /** What workers hold and have not used. */
  leased: number;
  left: number;
  /** Of `used`: by other nodes, or by workers that died. */
  elsewhere: number;
  resets_in_s: number | null;
  leases: { worker: string; taken: number; free: number }[];
}

export interface Limit {
  id: string;
  scope: string;
  requests_per_minute: number | null;
  tokens_per_minute: number | null;
  concurrent: number | null;
  queue_seconds: number;
  queue_size: number;
  use: LimitUse[];
  source: "api" | "key" | "noria.yaml";
}

export interface Quantiles {
  p50: number | null;
  p95: number | null;
}

export interface EndpointState {
  name: string;
  provider: string;
  model: string;
  region: string;
  apps: string[];
  /** Of a local model's server. */
  server: { state: string; detail: string } | null;
  /** The worst in the eyes of any worker. */
  state: "ok" | "trial" | "cooling" | "ejected" | "dead" | "unused";
  seconds_left: number;
  workers: number;
  workers_out: number;
  in_flight: number;
  failures_in_a_row: number;
  last_error: { text: string; seconds_ago: number } | null;
  attempts: Record<string, number>;
  took_ms: Quantiles;
  first_ms: Quantiles;
}

export interface Batch {
  id: string;
  endpoint: string;
  status: string;
  input_file_id: string;
  output_file_id: string | null;
  error_file_id: string | null;
  /** Seconds, as all times here. */
  created_at: number;
  expires_at: number;
  completed_at: number | null;
  failed_at: number | null;
  expired_at: number | null;
  cancelled_at: number | null;
  request_counts: { total: number; completed: number; failed: number };
  errors: { data: { code: string; message: string; line: number | null }[] } | null;
  metadata: Record<string, string> | null;
  /** `team:…`, `key:…`, `console` or `open`. */
  owner: string;
  key: string;
  lane: "" | "own" | "upstream";
}

export interface StoredFile {
  id: string;
  filename: string;
  purpose: string;
  bytes: number;
  created_at: number;
  expires_at: number;
  owner: string;
  key: string;
}

/** A refusal by the server, or by the network (`status` 0). */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly code = "",
    readonly hint = "",
    readonly retryAfter = 0,
  ) {
    super(message);
  }

  /** The error that a response (or its JSON body) carries. */
  static async from(response: Response): Promise<ApiError> {
    const retry = Number(response.headers.get("retry-after")) || 0;
    try {
      const { error } = (await response.json()) as { error: { message: string; code?: string | null; hint?: string | null } };
      return new ApiError(response.status, error.message, error.code ?? "", error.hint ?? "", retry);
    } catch {
      return new ApiError(response.status, `HTTP ${response.status}`, "", "", retry);
    }
  }
}

/** JSON from the server; raises `ApiError`. An aborted request raises the browser's `AbortError`. */
export async function request<T>(path: string, init: RequestInit = {}): Promise<T> {
  let response: Response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...init, headers: { accept: "application/json", ...init.headers } });
  } catch (e) {
    if (e instanceof DOMException) throw e;
    throw new ApiError(0, "");
  }
  if (!response.ok) throw await ApiError.from(response);
  return (response.status === 204 ? undefined : await response.json()) as T;
}

export const send = <T>(method: string, path: string, body?: unknown) =>
  request<T>(path, { method, headers: { "content-type": "application/json" }, body: body === undefined ? undefined : JSON.stringify(body) });

const of = (kind: Kind, name: string, cascade = false) => `/api/${kind}s/${encodeURIComponent(name)}${cascade ? "?cascade=true" : ""}`;

export const api = {
  keys: () => request<Key[]>("/api/keys"),
  access: () => request<Access>("/api/access"),
  openAccess: () => send<Access>("PUT", "/api/access", { keys_required: false }),
  createKey: (body: object) => send<FreshKey>("POST", "/api/keys", body),
  updateKey: (id: string, body: object) => send<Key>("PATCH", `/api/keys/${id}`, body),
  rotateKey: (id: string, overlap: string) => send<FreshKey>("POST", `/api/keys/${id}/rotate`, { overlap }),
  revokeKey: (id: string) => send<void>("DELETE", `/api/keys/${id}`),
  members: (kind: Kind) => request<Member[]>(`/api/${kind}s`),
  addMember: (kind: Kind, body: object) => send<Member>("POST", `/api/${kind}s`, body),
  changeMember: (kind: Kind, name: string, body: object, cascade = false) => send<Member>("PATCH", of(kind, name, cascade), body),
  removeMember: (kind: Kind, name: string, cascade = false) => send<{ revoked: string[] }>("DELETE", of(kind, name, cascade)),

  cost(by: string[], filter: string, since: string, signal?: AbortSignal): Promise<Costs> {
    const query = new URLSearchParams([...by.map((name) => ["by", name]), ["since", since], ...(filter ? [["filter", filter]] : [])]);
    return request<Costs>(`/api/cost?${query}`, { signal });
  },
  spared: (signal?: AbortSignal) => request<Spared>("/api/cache", { signal }),
  budgets: (signal?: AbortSignal) => request<Budget[]>("/api/budgets", { signal }),
  addBudget: (body: object) => send<Budget>("POST", "/api/budgets", body),
  changeBudget: (id: string, body: object) => send<Budget>("PATCH", `/api/budgets/${encodeURIComponent(id)}`, body),
  removeBudget: (id: string) => send<void>("DELETE", `/api/budgets/${encodeURIComponent(id)}`),
  limits: (signal?: AbortSignal) => request<Limit[]>("/api/limits", { signal }),
  addLimit: (body: object) => send<Limit>("POST", "/api/limits", body),
  removeLimit: (id: string) => send<void>("DELETE", `/api/limits/${encodeURIComponent(id)}`),
  endpoints: (signal?: AbortSignal) => request<EndpointState[]>("/api/endpoints", { signal }),
  batches: (signal?: AbortSignal) => request<Batch[]>("/api/batches", { signal }),
  cancelBatch: (id: string) => send<Batch>("POST", `/api/batches/${encodeURIComponent(id)}/cancel`, {}),
  files: (signal?: AbortSignal) => request<StoredFile[]>("/api/files", { signal }),

  status: (signal?: AbortSignal) => request<Status>("/api/status", { signal }),

  traces(filter: string, before: string | null, signal?: AbortSignal): Promise<Page> {
    const query = new URLSearchParams({ limit: "50" });
    if (filter) query.set("filter", filter);
    if (before) query.set("before", before);
    return request<Page>(`/api/traces?${query}`, { signal });
  },

  trace: (id: string, signal?: AbortSignal) => request<TraceDetail>(`/api/traces/${encodeURIComponent(id)}`, { signal }),

  login: (token: string) =>
    request<unknown>("/api/login", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ token }) }),
};
