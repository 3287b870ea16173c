/** Settings that a browser keeps. Storage may be refused (private windows): then they last as long as the page. */

export function recall<T extends string>(key: string, allowed: readonly T[]): T | null {
  try {
    const value = localStorage.getItem(`noria.${key}`) as T | null;
    return value !== null && allowed.includes(value) ? value : null;
  } catch {
    return null;
  }
}

export function keep(key: string, value: string): void {
  try {
    localStorage.setItem(`noria.${key}`, value);
  } catch {
    /* a setting that is not kept is not worth a message */
  }
}
