import type { Words } from "./words.en";
import { keep, recall } from "./stored";

const LANGUAGES = ["en", "zh"] as const;
export type Language = (typeof LANGUAGES)[number];

/** Only the words of the language that is shown are loaded. */
const LOAD: Record<Language, () => Promise<Words>> = {
  en: async () => (await import("./words.en")).en,
  zh: async () => (await import("./words.zh")).zh,
};

function preferred(): Language {
  const first = navigator.languages.find((l) => /^(en|zh)\b/i.test(l));
  return first?.toLowerCase().startsWith("zh") ? "zh" : "en";
}

class Speech {
  language = $state<Language>(recall("language", LANGUAGES) ?? preferred());
  /** There once `start` has ended, and so for every component. */
  words = $state.raw({} as Words);

  /** Load the words; to be awaited before anything is shown. */
  start(): Promise<void> {
    return this.speak(this.language);
  }

  async toggle(): Promise<void> {
    await this.speak(this.language === "en" ? "zh" : "en");
    keep("language", this.language);
  }

  private async speak(language: Language): Promise<void> {
    this.words = await LOAD[language]();
    this.language = language;
    document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  }
}

export const speech = new Speech();
