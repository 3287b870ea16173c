import { speech } from "./i18n.svelte";
import { en, type Ops } from "./ops.en";
import { zh } from "./ops.zh";

/** The words of the operators' pages, in the language of the console. */
class OpsWords {
  readonly words: Ops = $derived(speech.language === "zh" ? zh : en);
}

export const ops = new OpsWords();
