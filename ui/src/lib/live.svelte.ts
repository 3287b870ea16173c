import { api, type Row } from "./api";
import { session } from "./session.svelte";

const MOST = 1000; // rows kept in the page; older ones are a filter or a reload away
const HELD = 500;
const POLL_MS = 3000;

export type Line = "connecting" | "live" | "polling" | "paused";

/** The list of traces of one filter: pages of it, and what arrives while it is open. */
export class TraceList {
  rows = $state.raw<Row[]>([]);
  held = $state.raw<Row[]>([]);
  next = $state<string | null>(null);
  total = $state(0);
  line = $state<Line>("connecting");
  busy = $state(true);
  older = $state(false);
  error = $state.raw<Error | null>(null);
  paused = $state(false);
  /** Set by the page while the reader looks further down: rows must not move under the eye. */
  hold = $state(false);
  private source: EventSource | null = null;
  private poller = 0;
  private soon = 0;
  private retry = 0;
  private failures = 0;
  private asked = new AbortController();

  constructor(private filter = "") {}

  /** Show another filter. Old rows stay until the new ones are there. */
  async use(filter: string): Promise<void> {
    this.filter = filter;
    this.asked.abort();
    const mine = (this.asked = new AbortController());
    this.busy = true;
    try {
      const page = await api.traces(filter, null, mine.signal);
      this.rows = page.rows;
      this.held = [];
      this.next = page.next;
      this.total = page.total;
      this.error = null;
    } catch (e) {
      if (!mine.signal.aborted) this.error = session.meet(e);
    } finally {
      if (!mine.signal.aborted) this.busy = false;
    }
  }

  async loadOlder(): Promise<void> {
    if (!this.next || this.older) return;
    this.older = true;
    const mine = this.asked;
    try {
      const page = await api.traces(this.filter, this.next, mine.signal);
      const known = new Set(this.rows.map((r) => r.id));
      this.rows = [...this.rows, ...page.rows.filter((r) => !known.has(r.id))];
      this.next = page.next;
      this.total = Math.max(page.total, this.rows.length);
    } catch (e) {
      if (!mine.signal.aborted) this.error = session.meet(e);
    } finally {
      this.older = false;
    }
  }

  connect(): void {
    this.close();
    this.line = this.paused ? "paused" : "connecting";
    if (this.paused) return;
    const source = (this.source = new EventSource("/api/traces/live"));
    source.addEventListener("open", () => {
      this.line = "live";
      if (this.failures) void this.catchUp();
      this.failures = 0;
    });
    source.addEventListener("row", (e) => this.arrive(JSON.parse((e as MessageEvent<string>).data) as Row));
    source.addEventListener("error", () => {
      this.failures += 1;
      if (source.readyState === EventSource.CLOSED || this.failures >= 3) this.poll();
      else this.line = "connecting";
    });
  }

  close(): void {
    this.source?.close();
    this.source = null;
    clearInterval(this.poller);
    clearTimeout(this.retry);
    clearTimeout(this.soon);
    this.soon = 0;
  }

  toggle(): void {
    this.paused = !this.paused;
    this.connect();
    if (!this.paused) void this.catchUp();
  }

  /** Put the rows that were held back on top. */
  release(): void {
    this.hold = false;
    this.put(this.held);
    this.held = [];
  }

  /** Without a stream: ask, and try the stream again after half a minute. */
  private poll(): void {
    this.close();
    this.line = "polling";
    this.poller = window.setInterval(() => document.hidden || void this.catchUp(), POLL_MS);
    this.retry = window.setTimeout(() => this.connect(), 10 * POLL_MS);
    void this.catchUp();
  }

  private arrive(row: Row): void {
    // Only the server knows what a filter means; ask it once for everything that came within the second.
    if (this.filter) this.soon ||= window.setTimeout(() => ((this.soon = 0), void this.catchUp()), 1000);
    else this.take([row], this.total + 1);
  }

  private async catchUp(): Promise<void> {
    const mine = this.asked;
    if (this.busy) return;
    try {
      const page = await api.traces(this.filter, null, mine.signal);
      if (mine.signal.aborted) return;
      const known = new Set(this.rows.map((r) => r.id));
      if (this.rows.length && page.rows.length && !page.rows.some((r) => known.has(r.id))) {
        // More came than one page holds: begin anew rather than hide a gap.
        this.rows = page.rows;
        this.next = page.next;
        this.total = page.total;
        return;
      }
      if (!this.rows.length) this.next = page.next;
      this.take(page.rows, page.total);
    } catch (e) {
      if (!mine.signal.aborted) session.meet(e);
    }
  }

  private take(rows: Row[], total: number): void {
    const known = new Set([...this.rows, ...this.held].map((r) => r.id));
    const fresh = rows.filter((r) => !known.has(r.id));
    if (fresh.length) this.total = total;
    if (this.hold) this.held = [...fresh, ...this.held].slice(0, HELD);
    else this.put(fresh);
  }

  private put(fresh: Row[]): void {
    if (!fresh.length) return;
    const all = [...fresh, ...this.rows].sort((a, b) => (BigInt(a.time_ns) < BigInt(b.time_ns) ? 1 : -1));
    if (all.length > MOST) {
      this.rows = all.slice(0, MOST);
      this.next = null; // the cursor belonged to rows that were let go
    } else this.rows = all;
  }
}
