import { keep, recall } from "./stored";

const CHOICES = ["auto", "light", "dark"] as const;
export type Theme = (typeof CHOICES)[number];

class ThemeChoice {
  value = $state<Theme>(recall("theme", CHOICES) ?? "auto");

  constructor() {
    this.apply();
  }

  next(): void {
    this.value = CHOICES[(CHOICES.indexOf(this.value) + 1) % CHOICES.length]!;
    keep("theme", this.value);
    this.apply();
  }

  private apply(): void {
    if (this.value === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = this.value;
  }
}

export const theme = new ThemeChoice();
