"""Whether a page can be read: it fits its screen, its text stands out, and what is pressed has a name."""

from typing import Any

CONTRAST = """() => {
  const parse = (text) => {
    const n = text.match(/[\\d.]+/g).map(Number);
    const rgb = text.startsWith('color(') ? n.slice(0, 3).map((v) => v * 255) : n.slice(0, 3);
    return [...rgb, n.length > 3 ? n[3] : 1];
  };
  const over = (top, under) => under.map((u, i) => (i < 3 ? top[i] * top[3] + u * (1 - top[3]) : 1));
  const light = (c) => c.slice(0, 3).map((v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const poor = [];
  for (const el of document.querySelectorAll('body *')) {
    const text = [...el.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data.trim()).join('');
    if (!text || !el.checkVisibility() || el.closest(':disabled, svg, .hidden, .skip')) continue;
    const layers = [];
    for (let e = el; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
    const ground = layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
    const [a, b] = [light(over(parse(getComputedStyle(el).color), ground)), light(ground)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${el.className} ${text.slice(0, 30)}`);
  }
  return [...new Set(poor)];
}"""
"""Every text whose contrast with what lies under it is below 4.5 (WCAG AA), with its ratio."""
UNNAMED = "all => all.filter(e => !(e.ariaLabel || e.textContent.trim())).map(e => e.outerHTML)"


def faults(page: Any) -> list[str]:
    """What is wrong with the page as it stands."""
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return [
        *([f"{wide} px wider than the screen"] if wide > 0 else []),
        *page.evaluate(CONTRAST),
        *page.locator("button:visible, a:visible").evaluate_all(UNNAMED),
    ]
