// How the markup of the page of continuous mode is checked: html-validate's recommended rules.
// It is started by `python tests/run.py --lint`.

export default {
  root: true,
  extends: ["html-validate:recommended"],
  elements: [
    "html5",
    { img: { attributes: { src: { required: false } } } }, // #preview and #viewer-picture get theirs from the script
  ],
  rules: {
    "doctype-style": ["error", { style: "lowercase" }],
    // A <progress> cannot be styled alike in all browsers, nor can what it shows be moved by transform alone.
    "prefer-native-element": ["error", { exclude: ["progressbar"] }],
  },
};
