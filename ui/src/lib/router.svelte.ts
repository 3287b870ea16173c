/** Where the reader is. The URL holds all of it, so that any view can be linked to and Back works. */

class Router {
  path = $state(location.pathname);
  query = $state.raw(new URLSearchParams(location.search));

  constructor() {
    addEventListener("popstate", () => this.read());
  }

  private read(): void {
    this.path = location.pathname;
    this.query = new URLSearchParams(location.search);
  }

  /** Open another page. */
  go(url: string): void {
    history.pushState(null, "", url);
    this.read();
    scrollTo(0, 0);
  }

  /** Change parts of the query; null removes. `push` makes it a step that Back undoes. */
  set(values: Record<string, string | null>, { push = false } = {}): void {
    const query = new URLSearchParams(location.search);
    for (const [name, value] of Object.entries(values)) {
      if (value) query.set(name, value);
      else query.delete(name);
    }
    const search = query.toString();
    const url = location.pathname + (search ? `?${search}` : "");
    history[push ? "pushState" : "replaceState"](null, "", url);
    this.read();
  }
}

export const router = new Router();

/** Whether a click means "follow in this tab": others (new tab, download) stay with the browser. */
export function plainClick(event: MouseEvent): boolean {
  return event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey;
}

/** Follow links of ours without reloading; on the root element, so that links stay links. */
export function followLinks(event: MouseEvent): void {
  const link = (event.target as Element).closest("a");
  if (!link || event.defaultPrevented || link.target || link.origin !== location.origin || !plainClick(event)) return;
  event.preventDefault();
  router.go(link.pathname + link.search);
}
