// How the page of continuous mode is linted: the recommended rules, and what the page promises besides.
// ESLint is started by `python tests/run.py --lint`.

import css from "@eslint/css";
import js from "@eslint/js";
import globals from "globals";

const page = "comfyui_runner/extras/console";

/** What turns text into markup or code: texts of a server must stay texts. */
const markup = ["innerHTML", "outerHTML", "insertAdjacentHTML", "srcdoc", "setHTMLUnsafe", "createContextualFragment"];

const embellishments = ["resize", "field-sizing", "content-visibility", "contain-intrinsic-size", "forced-color-adjust"];

export default [
  { linterOptions: { reportUnusedDisableDirectives: "error" } },
  {
    files: [`${page}.js`, "tests/*.mjs"],
    ...js.configs.recommended,
  },
  {
    files: [`${page}.js`, "tests/*.mjs"],
    rules: {
      "array-callback-return": "error",
      curly: ["error", "multi-line"],
      "default-case-last": "error",
      eqeqeq: "error",
      "no-alert": "error",
      "no-console": "error",
      "no-constructor-return": "error",
      "no-eval": "error",
      "no-extend-native": "error",
      "no-implied-eval": "error",
      "no-lonely-if": "error",
      "no-new-func": "error",
      "no-promise-executor-return": "error",
      "no-restricted-properties": ["error", ...markup.map((property) => ({ property, message: "Texts of a server must not become markup." }))],
      "no-self-compare": "error",
      "no-shadow": "error",
      "no-throw-literal": "error",
      "no-unmodified-loop-condition": "error",
      "no-unneeded-ternary": "error",
      "no-useless-return": "error",
      "no-var": "error",
      "object-shorthand": "error",
      "prefer-const": "error",
      "prefer-template": "error",
      strict: ["error", "global"],
    },
  },
  {
    files: [`${page}.js`],
    languageOptions: { sourceType: "script", globals: globals.browser },
  },
  {
    files: ["tests/*.mjs"],
    languageOptions: { globals: { document: "readonly" } }, // in functions that are run in a page
  },
  {
    files: [`${page}.css`],
    plugins: { css },
    language: "css/css",
    rules: {
      ...css.configs.recommended.rules,
      // What is hidden, and the wish for less motion, must win over every other rule.
      "css/no-important": "off",
      // :has is in every browser since December 2023. Where one of these properties is not known, the page looks a
      // little plainer, and works.
      "css/use-baseline": ["error", { allowSelectors: ["has"], allowProperties: embellishments }],
    },
  },
];
