import { speech, type Language } from "./i18n.svelte";
import type { ModelWords } from "./model.en";

/** Only the words of the language that is shown are loaded. */
const LOAD: Record<Language, () => Promise<ModelWords>> = {
  en: async () => (await import("./model.en")).en,
  zh: async () => (await import("./model.zh")).zh,
};
const first = await LOAD[speech.language]();

/** The words of the model journey's pages, in the language of the console. */
class Journey {
  words = $state.raw(first);

  constructor() {
    $effect.root(() => {
      $effect(() => {
        const language = speech.language;
        void LOAD[language]().then((words) => speech.language === language && (this.words = words));
      });
    });
  }
}

export const journey = new Journey();
