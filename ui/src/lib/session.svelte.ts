import { api, ApiError, type Status } from "./api";

/** What the whole console shares: whether a login is needed, and how the server is. */
class Session {
  needed = $state(false);
  reachable = $state(true);
  status = $state.raw<Status | null>(null);
  private timer = 0;

  /** Ask for the status now and again every few seconds while the page is visible. */
  start(): () => void {
    const tick = async () => {
      if (!document.hidden && !this.needed) await this.refresh();
      const soon = this.status?.models.some((m) => m.state === "loading") || !this.reachable;
      this.timer = window.setTimeout(tick, soon ? 2000 : 5000);
    };
    void tick();
    return () => clearTimeout(this.timer);
  }

  async refresh(): Promise<void> {
    try {
      this.status = await api.status();
      this.reachable = true;
    } catch (e) {
      this.meet(e);
    }
  }

  /** Take note of what an error says of the session; the error again, for the page to show. */
  meet(error: unknown): ApiError {
    const known = error instanceof ApiError ? error : new ApiError(0, String(error));
    if (known.status === 401) this.needed = true;
    if (known.status === 0) this.reachable = false;
    return known;
  }

  async login(token: string): Promise<void> {
    await api.login(token);
    this.needed = false;
    await this.refresh();
  }
}

export const session = new Session();
