// The language of the picture, as chosen in ComfyUI's settings.

import { TEXTS } from "./paro_texts.js";

const ENGLISH = "en";
let language = ENGLISH;

/** @param {string|undefined} locale such as "zh-TW"; one without texts of ours counts as English */
export function setLanguage(locale) {
  const [code] = String(locale ?? "").toLowerCase().split(/[-_]/);
  language = Object.hasOwn(TEXTS, code) ? code : ENGLISH;
}

/** A text in the chosen language. @param {string} key @param {Object<string, string|number>} values */
export function say(key, values = {}) {
  return TEXTS[language][key].replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

/** What the server says: its texts are keys with {n} for a number; others stay as they are. */
export function sayServer(text) {
  const key = text.replace(/\d+/, "{n}");
  return Object.hasOwn(TEXTS[ENGLISH], key) ? say(key, { n: /\d+/.exec(text)?.[0] }) : text;
}

/** A whole number with the language's separators. */
export function count(value) {
  return value.toLocaleString(language);
}
