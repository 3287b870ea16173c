import { en, type Words } from "./words.en";
import { zh } from "./words.zh";
import { keep, recall } from "./stored";

const LANGUAGES = ["en", "zh"] as const;
export type Language = (typeof LANGUAGES)[number];

function preferred(): Language {
  const first = navigator.languages.find((l) => /^(en|zh)\b/i.test(l));
  return first?.toLowerCase().startsWith("zh") ? "zh" : "en";
}

class Speech {
  language = $state<Language>(recall("language", LANGUAGES) ?? preferred());
  readonly words: Words = $derived(this.language === "zh" ? zh : en);

  constructor() {
    this.apply();
  }

  toggle(): void {
    this.language = this.language === "en" ? "zh" : "en";
    keep("language", this.language);
    this.apply();
  }

  private apply(): void {
    document.documentElement.lang = this.language === "zh" ? "zh-Hans" : "en";
  }
}

export const speech = new Speech();
