// The page of continuous mode: what it does. What a server sends reaches the page as text, never as markup.
"use strict";

// ---------------------------------------------------------------- tools

const $ = (id) => document.getElementById(id);

/** An element. Properties are attributes, or listeners when they begin with "on". */
function h(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

/** Sets text only when it changes: a live region would speak again. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Builds a part anew only when what it shows has changed, so focus, scroll place and playing videos stay. */
function redraw(element, signature, build) {
  if (element.signature === signature) return;
  element.signature = signature;
  element.replaceChildren(...build().filter(Boolean));
}

// Seeds go to 2^64 and a JavaScript number holds 2^53: such integers become BigInt where the browser gives the source text.
const fromJSON = (text) => JSON.parse(text, (key, value, context) =>
  typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value) && context && /^-?\d+$/.test(context.source) ? BigInt(context.source) : value);
const toJSON = (value, indent) => JSON.stringify(value, (key, item) => typeof item !== "bigint" ? item : JSON.rawJSON ? JSON.rawJSON(String(item)) : Number(item), indent);

/** What the runner says to people at a terminal, in the words of the page. */
const wordings = [
  [/For a random seed, use --seed random, or set it to "random"\./, "For a random seed, press the dice."],
  [/add --seed random/, "press the dice of a seed"],
  [/It is on this machine: --image "[^"]*" uploads it\./, "Choose the file here to upload it."],
  [/Cancelled by --timeout/, "Cancelled by the time limit"],
  [/The service was started without --allow-spend: nothing was run\./, "This runner may not spend credits: nothing was run."],
];
// Any other sentence with a flag says how to start the runner: that is not for those who use its page.
const namesFlag = /(^|\s)--(allow-\w+|demo|header|host|image|port|public-url|seed|server|set|state|timeout|token|yes)\b/;

function inPageWords(text) {
  const reworded = wordings.reduce((before, [terminal, page]) => before.replace(terminal, page), String(text ?? ""));
  const sentences = reworded.split(/(?<=[.!?]) +/);
  return sentences.filter((sentence) => !namesFlag.test(sentence)).join(" ") || reworded;
}

const seconds = (value) => value < 9.95 ? `${value.toFixed(1)} s` : value < 90 ? `${Math.round(value)} s` : `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
const clock = (unix) => new Date(unix * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
const words = (name) => (name.charAt(0).toUpperCase() + name.slice(1)).replace(/_/g, " ");
const narrow = () => !matchMedia("(min-width: 900px)").matches;

// ---------------------------------------------------------------- the runner over HTTP

/** An answer other than 2xx, or none (status 0). */
class Refused extends Error {
  constructor(status, error, retryAfter) {
    const message = (error && error.message) || "";
    super(inPageWords(message) || (status ? `The runner answered with HTTP ${status}.` : "The runner does not answer."));
    this.status = status;
    this.problems = (error && error.details && error.details.problems) || [];
    this.unsaid = this.problems.filter((problem) => !message.includes(problem.message)); // the message may have the first one
    const candidates = ((error && error.details && error.details.candidates) || []).map((one) => one && typeof one === "object" ? one.title || one.node_id : one);
    const hints = this.problems.length ? [] : candidates.length ? [`Candidates: ${candidates.join(", ")}.`] : [];
    if (retryAfter) hints.push(/^\d+$/.test(retryAfter) ? `Try again in ${retryAfter} s.` : "Try again later.");
    this.words = [this.message, ...hints].join(" ");
  }
}

function answered(status, text, retryAfter) {
  let data = null;
  try { data = text ? fromJSON(text) : null; } catch { /* a proxy's page in HTML: the status tells enough */ }
  if (status >= 200 && status < 300) return data;
  if (status === 401) askToken();
  throw new Refused(status, data && data.error, retryAfter);
}

async function api(path, { method = "GET", body, timeout = 15 } = {}) {
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), timeout * 1000);
  let response, text;
  try {
    response = await fetch(path, { method, body, signal: stop.signal, cache: "no-store", headers: body === undefined ? {} : { "Content-Type": "application/json" } });
    text = await response.text();
  } catch { throw new Refused(0); } finally { clearTimeout(timer); }
  return answered(response.status, text, response.headers.get("Retry-After"));
}

/** XMLHttpRequest, because fetch does not tell how far an upload is. */
function upload(path, file, progressed) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(), form = new FormData();
    form.append("image", file, file.name || "pasted.png");
    let quiet; // aborts an upload of which a minute long nothing moves
    const moved = () => { clearTimeout(quiet); quiet = setTimeout(() => request.abort(), 60000); };
    moved();
    request.upload.addEventListener("progress", (event) => { moved(); if (event.lengthComputable) progressed(event.loaded / event.total); });
    request.addEventListener("loadend", () => clearTimeout(quiet));
    request.addEventListener("abort", () => reject(new Refused(0)));
    request.addEventListener("load", () => { try { resolve(answered(request.status, request.responseText, request.getResponseHeader("Retry-After"))); } catch (error) { reject(error); } });
    request.addEventListener("error", () => reject(new Refused(0)));
    request.open("POST", path);
    request.send(form);
  });
}

const viewURL = (file) => `view?${new URLSearchParams({ filename: file.filename || "", subfolder: file.subfolder || "", type: file.type || "output" })}`;

/** The address of an output; one of another origin or scheme (javascript:) is not taken from the server. */
function outputURL(output) {
  try {
    if (output.url && new URL(output.url, document.baseURI).origin === location.origin) return output.url;
  } catch { /* no URL */ }
  return viewURL(output);
}

/** A value of an upload field, "folder/name.png [output]", as a file. */
function fileOf(value) {
  const [, path, type] = /^(.*?)(?: \[(input|output|temp)\])?$/s.exec(String(value || ""));
  const cut = path.lastIndexOf("/");
  return { filename: path.slice(cut + 1), subfolder: path.slice(0, Math.max(cut, 0)), type: type || "input" };
}

// ---------------------------------------------------------------- what the page knows

const app = {
  link: "connecting", // connecting, open, lost, login
  status: null, held: null, revision: null,
  runs: new Map(), // by prompt_id
  selected: null, // the run whose results the person chose to see
  started: new Set(), // the runs that were started in this tab, by prompt_id
  restarts: 0, // how often the runner may have been restarted
  next: undefined, // the path of the next page of earlier runs, null at the end
  moreAt: 0, // when it may be asked for, after an answer that was none
  endOfRunsIsInView: false,
  sending: false, stopping: null, live: false, news: "",
  choices: [], choosing: null, // the workflows to choose from, where there are several; the one that will be held
  formOf: undefined, // the workflow that the fields are of
};
const pageOfRuns = 200; // so many runs does the runner list at a time
const fields = new Map(); // by node and input

const sorted = () => [...app.runs.values()].sort((a, b) => b.created - a.created);
const busy = (run) => !run.over;

/** The run whose progress is shown: the running one, else the one that comes first. */
function activeRun() {
  const open = sorted().filter(busy).reverse();
  return open.find((run) => run.phase === "running") || open[0] || null;
}

/** The run whose results are shown: the chosen one; while one works its own, or the last pictures; else the last that began.
    One that was refused is explained beside the fields, and here only for those who choose it. */
function shownRun(active) {
  if (app.selected && app.runs.has(app.selected)) return app.runs.get(app.selected);
  if (active && active.outputs.length) return active;
  const over = sorted().filter((run) => run.over);
  return over.find((run) => run.outputs.length || (!active && (run.failure || run.phase === "lost"))) || null;
}

// ---------------------------------------------------------------- the form: one field an input

const keyOf = (node_id, input) => `${node_id}\n${input}`;

/** Why what a person typed is not a value for its field, in words. */
class Wrong extends Error {}

/** The words of an error that was meant for people; any other is a fault of the page. */
function wordsOf(error) {
  if (error instanceof Wrong) return error.message;
  throw error;
}

/** Each kind: build(field) puts controls into field.box and gives {input, show(value), raw()}; raw() is JSON text, or throws Wrong. */
const kinds = {
  text(field) {
    const { multiline, value } = field.spec;
    const input = multiline ? h("textarea", { rows: Math.min(12, Math.max(3, Math.ceil(String(value ?? "").length / 38))) }) : h("input", { type: "text" });
    field.box.append(input);
    return { input, show: (now) => { input.value = now ?? ""; }, raw: () => toJSON(input.value) };
  },

  seed(field) {
    const input = h("input", { type: "text", inputmode: "numeric", autocomplete: "off", oninput: () => field.note.replaceChildren() });
    const dice = h("button", { type: "button", title: "Random seed", "aria-label": `Random seed: ${field.name}`, onclick: () => { setError(field, ""); post(field, '"random"'); } }, $("dice").content.cloneNode(true));
    field.box.append(h("div", { class: "joined" }, input, dice));
    return {
      input,
      show(value) { // while it is random, the number that the workflow holds is not the one that will run
        const number = typeof value === "number" || typeof value === "bigint" ? String(value) : "";
        const again = () => { input.value = number; edited(field, true); };
        input.value = field.spec.random ? "" : number;
        input.placeholder = "random";
        field.note.replaceChildren(...field.spec.random ? ["A new one for every run."] : [], ...field.spec.random && number ? [h("button", { type: "button", class: "plain", onclick: again }, `Use ${number}`)] : []);
      },
      raw() {
        const text = input.value.trim();
        if (!/^-?\d+$/.test(text)) throw new Wrong("A seed must be a whole number. Press the dice for a random one.");
        const { min, max } = field.spec;
        if ((min !== null && min !== undefined && BigInt(text) < min) || (max !== null && max !== undefined && BigInt(text) > max)) throw new Wrong(`Allowed: ${min ?? "any"} to ${max ?? "any"}.`);
        return String(BigInt(text)); // JSON has no leading zeros
      },
    };
  },

  number(field) {
    const { kind, min, max, step } = field.spec;
    const by = Number(step) || (kind === "int" ? 1 : 0.1);
    const digits = Math.max(0, ...[by, field.spec.value].map((one) => (String(one).split(".")[1] || "").length));
    const input = h("input", { type: "number", inputmode: kind === "int" ? "numeric" : "decimal", min, max, step: by, autocomplete: "off" });
    const nudge = (sign) => () => {
      const next = Number((Number(input.value) + sign * by).toFixed(Math.min(digits, 10)));
      input.value = Math.min(Math.max(next, Number(min ?? -Infinity)), Number(max ?? Infinity));
      edited(field);
    };
    // Out of the order of Tab: the arrow keys do the same in the field.
    const button = (sign, label) => h("button", { type: "button", tabindex: -1, "aria-label": `${label}: ${field.name}`, onclick: nudge(sign) }, sign < 0 ? "−" : "+");
    field.box.append(h("div", { class: "number" }, button(-1, "Less"), input, button(1, "More")));
    return {
      input,
      show: (value) => { input.value = value ?? ""; },
      raw() {
        const value = input.valueAsNumber;
        if (!Number.isFinite(value)) throw new Wrong("Enter a number.");
        if (kind === "int" && !Number.isInteger(value)) throw new Wrong("Enter a whole number.");
        if ((min !== null && min !== undefined && value < min) || (max !== null && max !== undefined && value > max)) throw new Wrong(`Allowed: ${min ?? "any"} to ${max ?? "any"}.`);
        return String(value);
      },
    };
  },

  choice(field) {
    const options = [...field.spec.options || []];
    const input = h("select", {}, ...options.map((option, at) => h("option", { value: at }, String(option))));
    field.box.append(input);
    return {
      input,
      show(value) {
        let at = options.indexOf(value);
        if (at < 0) { // held by the workflow, unknown to the server: show it as it is
          at = options.push(value) - 1;
          input.append(h("option", { value: at }, field.spec.options.length && field.spec.kind === "choice" ? `${value} (the server does not have it)` : String(value)));
        }
        input.value = at;
      },
      raw: () => toJSON(options[input.value]),
    };
  },

  toggle(field) {
    const input = h("input", { type: "checkbox", role: "switch" });
    field.label.classList.add("toggle");
    field.label.append(input);
    return { input, show: (value) => { input.checked = Boolean(value); }, raw: () => String(input.checked) };
  },

  upload(field) {
    const media = field.spec.media || "file";
    const name = { image: "picture", video: "video", audio: "sound", file: "file" }[media] || "file";
    const accept = media === "file" ? null : `${media}/*`;
    const picked = (event) => { const [file] = event.target.files; event.target.value = ""; if (file) sendFile(field, file); };
    const picker = (text, extra) => h("label", { class: "button" }, text, h("input", { type: "file", class: "unseen", accept, "aria-label": `${text}: ${field.name}`, onchange: picked, ...extra }));
    const show = h("div", { class: "row" }), zone = h("div", { class: "drop" }, show);
    const choose = picker(`Choose a ${name}`, { id: `file-${field.spec.node_id}-${field.spec.input}` });
    // A computer shows the same window for "capture": only where there is touch.
    const camera = accept && matchMedia("(any-pointer: coarse)").matches ? picker(media === "audio" ? "Record" : "Camera", { capture: "environment" }) : null;
    const there = (field.spec.options || []).length ? kinds.choice({ spec: field.spec, box: { append: () => {} } }) : null;
    if (there) {
      there.input.setAttribute("aria-label", `On the server: ${field.name}`);
      there.input.addEventListener("change", () => edited(field, true));
    }
    zone.append(h("div", { class: "row" }, choose, camera), ...matchMedia("(any-pointer: fine)").matches ? [h("small", {}, "or drop or paste one here")] : []);
    if (there) zone.append(there.input);
    zone.addEventListener("dragover", () => zone.classList.add("over"));
    zone.addEventListener("dragleave", () => zone.classList.remove("over"));
    field.box.append(zone);
    let value = null;
    return {
      input: choose.querySelector("input"), zone,
      show(now) {
        value = now;
        if (there && now) there.show(now);
        const src = viewURL(fileOf(now));
        redraw(show, toJSON([now, field.uploaded]), () => {
          zone.querySelectorAll(":scope > img, :scope > video, :scope > audio").forEach((old) => old.remove());
          if (!now) return [h("span", { class: "soft" }, `No ${name} yet`)];
          const missing = () => { element.remove(); say(label, `${now} (cannot be shown)`); };
          const label = h("small", {}, String(now));
          const element = media === "image" ? h("img", { src, alt: `Chosen: ${now}`, onerror: missing }) : media === "video" ? h("video", { src, controls: true, playsinline: true, muted: true, preload: "metadata" })
            : media === "audio" ? h("audio", { src, controls: true, preload: "metadata" }) : null;
          if (element) zone.prepend(element);
          return [label];
        });
      },
      raw: () => there && there.input.selectedIndex >= 0 ? there.raw() : toJSON(value),
    };
  },
};
kinds.int = kinds.float = kinds.number;

function makeField(spec, signature, label, aside) {
  const id = `field-${spec.node_id}-${spec.input}`;
  const field = {
    spec, signature, name: label, server: undefined, // what the runner holds
    dirty: false, // typed, and not yet held by the runner
    refused: false, timer: 0,
    label: h("label", { for: id }, label, aside ? h("small", {}, ` ${aside}`) : ""),
    error: h("p", { class: "error", id: `error-${spec.node_id}-${spec.input}`, "aria-live": "polite" }), note: h("p", { class: "note", id: `note-${spec.node_id}-${spec.input}` }),
  };
  const long = (spec.options || []).some((option) => String(option).length > 24);
  const isModel = /^(ckpt|unet)_name$/.test(spec.input);
  const wide = ["text", "seed", "upload", "toggle"].includes(spec.kind) || long || isModel;
  field.box = h("div", { class: wide ? "field wide" : "field", "data-node-id": spec.node_id, "data-input": spec.input }, field.label);
  Object.assign(field, (kinds[spec.kind] || kinds.text)(field));
  field.box.append(field.error, field.note);
  if (spec.kind === "upload") { // the label names the whole, the file button has its own
    field.label.replaceWith(h("span", { class: "label" }, label));
    field.box.setAttribute("role", "group");
    field.box.setAttribute("aria-label", label);
  } else {
    field.input.id = id;
    field.input.addEventListener("input", () => edited(field));
    field.input.addEventListener("change", () => edited(field, true));
    field.input.addEventListener("blur", () => receive(field)); // what another tab wrote while we were in here
  }
  field.input.setAttribute("aria-describedby", `${field.error.id} ${field.note.id}`);
  return field;
}

/** Shows the runner's value, unless a person is at this field. */
function receive(field, value = field.server) {
  field.server = value;
  if (field.dirty || (document.activeElement === field.input && ["text", "seed", "int", "float", "choice"].includes(field.spec.kind))) return;
  field.sent = undefined;
  field.show(value);
}

function setError(field, text) {
  say(field.error, text);
  if (!text) forgetNotice(field);
  field.input.setAttribute("aria-invalid", Boolean(text));
  if (text) unfold(field);
}

/** Opens what a field is folded away in. */
function unfold(field) {
  const node = field.box.closest(".node");
  if (node) node.hidden = false; // the filter may have hidden it
  for (let fold = field.box.closest("details"); fold; fold = fold.parentElement.closest("details")) {
    fold.open = true;
    fold.hidden = false;
  }
}

const mostOptions = 2000; // a longer list is not sent whole: what is not in it may exist

/** What would be refused of a value that nobody has typed here is said before Run is pressed. */
function foresee(field) {
  if (field.dirty) return;
  const { kind, options, value, random } = field.spec;
  let wrong = "";
  if (kind === "choice" && options.length && options.length < mostOptions && !options.includes(value)) wrong = `ComfyUI does not have ${value}.`;
  if (["int", "float", "seed"].includes(kind) && !random) {
    try { field.raw(); } catch (error) { wrong = wordsOf(error); }
  }
  const isStillSaid = field.foreseen && field.error.textContent === field.foreseen;
  if (isStillSaid ? wrong !== field.foreseen : wrong && !field.error.textContent) setError(field, wrong);
  field.foreseen = wrong;
}

const told = (problem) => [problem.message, ...problem.hints || []].filter(Boolean).map(inPageWords).join("\n");

/** The field that a problem is about: its input's; for a node that raised, its field if it has but one. */
function fieldOf(problem) {
  if (problem.input) return fields.get(keyOf(problem.node_id, problem.input));
  const all = fieldsOf(problem.node_id);
  return all.length === 1 ? all[0] : undefined;
}

const fieldsOf = (node_id) => [...fields.values()].filter((field) => field.spec.node_id === node_id);

/** Puts problems beside their fields; gives those that have one. */
function mark(problems) {
  return problems.map((problem) => {
    const field = fieldOf(problem);
    if (field) setError(field, told(problem));
    return field;
  }).filter(Boolean);
}

// ---------------------------------------------------------------- edits: typed, sent after a pause, one after the other

let lastEdit = Promise.resolve();

function edited(field, now = false) {
  clearTimeout(field.timer);
  // "change" after "input": sent already. Another tab may have written since, and that stays.
  if (now && !field.dirty && field.spec.kind !== "seed" && field.server !== undefined && [toJSON(field.server), field.sent].includes(safeRaw(field))) return;
  if (!field.dirty || field.refused || !now) setError(field, "");
  field.dirty = true;
  field.refused = false;
  field.timer = setTimeout(() => sendEdit(field), now ? 0 : 400);
}

function safeRaw(field) {
  try { return field.raw(); } catch { return null; }
}

function sendEdit(field) {
  clearTimeout(field.timer);
  field.timer = 0;
  try { return post(field, field.raw()); } catch (error) {
    setError(field, wordsOf(error));
    field.refused = true;
  }
}

/** `raw` is JSON text, so that a seed of 64 bits arrives as it was typed. */
function post(field, raw) {
  const { node_id, input } = field.spec;
  field.dirty = true;
  field.sent = raw;
  const send = async () => {
    const same = () => raw === '"random"' ? !field.timer : safeRaw(field) === raw && !field.timer; // nothing was typed meanwhile
    try {
      const answer = await api("update/inputs", { method: "POST", body: `{"node_id": ${toJSON(node_id)}, "inputs": {${toJSON(input)}: ${raw}}}` });
      if (same()) {
        field.dirty = field.refused = false;
        setError(field, "");
        if (answer.changed && input in answer.changed) receive(field, answer.changed[input]);
        else field.server = fromJSON(raw);
        if (answer.checked === false && field.spec.kind !== "seed") say(field.note, "Not checked: ComfyUI does not answer.");
        else if (field.spec.kind !== "seed") say(field.note, "");
      }
      if (app.revision !== null && answer.revision === app.revision + 1 && field.spec.kind !== "seed") { // only our own edit lies between
        app.revision = answer.revision;
        if (app.status) app.status.workflow.changed = true;
        draw();
      } else wantWorkflow(answer.revision);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (!same()) return;
      field.refused = error.status >= 400 && error.status !== 401 && error.status < 500; // else it is sent again when the runner is back
      setError(field, error.problems.length ? error.problems.map(told).join("\n") : error.status ? error.words : "Not sent yet: the runner does not answer.");
    }
  };
  return (lastEdit = lastEdit.then(send, send));
}

/** Sends all that is typed; gives the fields that the runner does not hold as they are shown. */
async function flush() {
  // Ctrl+Enter leaves no field: what a person sees in this one runs, even if another tab has written since.
  const overtaken = (field) => field.input === document.activeElement && field.sent !== undefined && safeRaw(field) === field.sent && field.sent !== toJSON(field.server);
  for (const field of fields.values()) if ((field.dirty && !field.refused) || overtaken(field)) sendEdit(field);
  await lastEdit.catch(() => {});
  return [...fields.values()].filter((field) => field.dirty);
}

async function sendFile(target, file) {
  let field = target;
  const now = () => (field = fields.get(keyOf(target.spec.node_id, target.spec.input)) || target); // it is built anew when the list of files grows
  setError(field, "");
  say(field.note, "Uploading …");
  field.zone.setAttribute("aria-busy", "true");
  try {
    const answer = await upload(`upload/image?${new URLSearchParams({ node_id: field.spec.node_id })}`, file, (part) => say(now().note, `Uploading … ${Math.round(part * 100)}%`));
    now();
    field.server = (answer.subfolder ? `${answer.subfolder}/` : "") + answer.name;
    field.dirty = field.refused = false;
    field.uploaded = (field.uploaded || 0) + 1; // the same name may be another picture
    field.show(field.server);
    say(field.note, "Loaded.");
    if (answer.prompt_id) started(answer);
  } catch (error) {
    say(now().note, "");
    setError(field, `${file.name || "The file"} was not loaded. ${error.words || error}`);
  } finally {
    field.zone.removeAttribute("aria-busy");
  }
}

// Files may be dropped anywhere: on a field, or on the page, where the first field of their kind takes them.
function takeFile(file, target) {
  const uploads = [...fields.values()].filter((field) => field.spec.kind === "upload");
  const fits = (field) => field.spec.media === "file" || !file.type || file.type.startsWith(field.spec.media);
  const field = uploads.find((one) => one.box.contains(target)) || uploads.find(fits);
  if (field) sendFile(field, file);
  else notice("This workflow has no field for that file.");
}
addEventListener("dragover", (event) => { if ([...event.dataTransfer.types].includes("Files")) event.preventDefault(); });
addEventListener("drop", (event) => {
  document.querySelectorAll(".drop.over").forEach((zone) => zone.classList.remove("over"));
  if (!event.dataTransfer.files.length) return;
  event.preventDefault(); // else the browser would leave the page for the picture
  const [file] = event.dataTransfer.files;
  if (/\.json$/i.test(file.name)) loadWorkflowFile(file);
  else takeFile(file, event.target);
});
addEventListener("paste", (event) => {
  const { files } = event.clipboardData;
  const typing = event.target.matches && event.target.matches("input, textarea") && event.clipboardData.types.includes("text/plain");
  if (!files.length || typing) return;
  event.preventDefault();
  takeFile(files[0], event.target);
});

// ---------------------------------------------------------------- the held workflow

let reading = false, wanted = null;

/** Reads the workflow again unless it is the one we have; one read at a time. */
async function wantWorkflow(revision) {
  wanted = revision;
  if (reading || wanted === app.revision) return;
  reading = true;
  const { restarts } = app;
  try {
    const [workflow, status] = await Promise.all([api("workflow"), api("status")]); // the status says whether it is still the file's
    app.status = status;
    app.revision = restarts === app.restarts ? workflow.revision : null; // else a runner that has ended may have answered
    app.held = { prompt: workflow.prompt, draws: workflow.draws };
    $("download-ui").hidden = !workflow.has_ui_format;
    await readChoices();
    if (app.formOf !== undefined && app.formOf !== status.workflow.name) forgetFields(); // another tab has chosen it
    app.formOf = status.workflow.name;
    showForm(workflow.fields);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status > 0 && error.status !== 401) notice(`The workflow cannot be read: ${error.words}`);
    wanted = app.revision; // the next event or poll asks again
  } finally { reading = false; }
  if (wanted !== null && (app.revision === null || wanted > app.revision)) wantWorkflow(wanted);
}

/** Reads which workflows there are, where there are several. */
async function readChoices() {
  app.choices = app.status.workflow.choices > 1 ? (await api("workflows")).workflows : [];
}

let lastChoice = Promise.resolve();

/** Holds another workflow of the list; one after the other, as arrow keys may choose quickly. */
function chooseWorkflow(name) {
  app.choosing = name;
  lastChoice = lastChoice.then(() => app.choosing === name && holdChosen(name));
}

/** What was typed into the workflow that is left is kept with that. */
async function holdChosen(name) {
  const open = await flush();
  if (open.length) {
    notice(`The workflow was not changed. See ${namesOf(open)}.`, undefined, true, open);
    showField(open[0]);
  } else {
    try {
      const answer = await api(workflowPath(name), { method: "PUT", timeout: 60 }), problems = answer.problems.map(problemLine);
      forgetFields();
      if (problems.length) problems.unshift("ComfyUI would refuse to run it now:");
      notice([...answer.warnings, ...problems].join("\n"));
      wantWorkflow(answer.revision);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      notice(error.words.includes(name) ? error.words : `${name} was not loaded. ${error.words}`);
      readChoices().then(draw, () => {});
    }
  }
  if (app.choosing === name) app.choosing = null;
  draw();
}

/** The workflows to choose from. The one that is held is chosen, or the one that will be. */
function drawChoices(workflow) {
  const choices = workflow && workflow.choices > 1 ? app.choices : [], isHeld = ({ name }) => name === workflow.name;
  $("file").classList.toggle("unseen", choices.length > 0);
  $("choices").hidden = !choices.length;
  const texts = choices.map((choice) => {
    const isChanged = isHeld(choice) ? workflow.changed : choice.changed;
    return `${choice.name}${choice.readable ? "" : " (cannot be read)"}${isChanged ? " (changed)" : ""}`;
  });
  redraw($("choices"), toJSON(texts), () => choices.map((choice, at) => h("option", { value: choice.name, title: choice.message }, texts[at])));
  if (choices.length) $("choices").value = app.choosing || workflow.name;
}

function groupsOf(specs) {
  const groups = new Map();
  for (const spec of specs) groups.set(spec.node_id, [...groups.get(spec.node_id) || [], spec]);
  return [...groups.values()];
}

function showForm(specs) {
  const shown = new Map(), titles = new Map();
  for (const spec of specs) titles.set(spec.title, (titles.get(spec.title) || new Set()).add(spec.node_id));
  const focused = document.activeElement;

  const fieldFor = (spec, alone) => {
    const title = titles.get(spec.title).size > 1 ? `${spec.title} #${spec.node_id}` : spec.title;
    const role = spec.role && !new RegExp(spec.role, "i").test(spec.title) ? `${words(spec.role)} text` : "";
    const isNamedByNode = spec.kind !== "text" || spec.multiline || spec.important;
    const label = alone ? role || (isNamedByNode ? title : `${title}: ${words(spec.input).toLowerCase()}`) : role || words(spec.input);
    const aside = alone && role ? title : alone && !["text", "upload"].includes(spec.kind) ? words(spec.input) : "";
    const signature = toJSON([label, aside, { ...spec, value: spec.kind === "text" ? spec.multiline : 0, random: 0 }]);
    const key = keyOf(spec.node_id, spec.input);
    let field = fields.get(key);
    if (!field || field.signature !== signature) {
      const old = field;
      field = makeField(spec, signature, label, aside);
      if (old) clearTimeout(old.timer);
      if (old && old.spec.kind === spec.kind && spec.kind === "upload") {
        field.uploaded = old.uploaded;
        say(field.note, old.note.textContent);
        setError(field, old.error.textContent);
      }
    }
    shown.set(key, field);
    field.spec = spec;
    receive(field, spec.value);
    if (spec.kind === "seed" && !field.dirty && document.activeElement !== field.input) field.show(spec.value);
    return field.box;
  };
  const group = (specsOfNode, card) => {
    const alone = specsOfNode.length === 1;
    const boxes = h("div", { class: "fields" }, ...specsOfNode.map((spec) => fieldFor(spec, alone)));
    if (alone) return h("div", { class: card }, boxes);
    const { title, node_id } = specsOfNode[0];
    return h("fieldset", { class: card }, h("legend", { class: card ? "unseen" : "" }, title), card ? h("p", { class: "legend", "aria-hidden": "true" }, title) : null,
      titles.get(title).size > 1 ? h("small", {}, `#${node_id}`) : null, boxes);
  };

  /** The same behind one line, which is opened by a press. */
  const fold = (specsOfNode, card) => {
    const { title, node_id } = specsOfNode[0], name = titles.get(title).size > 1 ? `${title} #${node_id}` : title;
    const names = specsOfNode.map((spec) => words(spec.input)).join(", ");
    return h("details", { class: `fold ${card}`, "data-node": node_id, open: unfolded.has(node_id) },
      h("summary", {}, h("span", {}, name, h("small", {}, names))), h("div", { class: "fields" }, ...specsOfNode.map((spec) => fieldFor(spec, false))));
  };
  const unfolded = new Set([...document.querySelectorAll("details.fold[open]")].map((one) => one.dataset.node));
  /** Up to `most` groups as they are; of more, most are folded. */
  const groupsOrFolds = (some, card, most) => some.map((specsOfNode, at) => {
    const node = some.length > most && at >= most / 2 ? fold(specsOfNode, card) : group(specsOfNode, card);
    node.classList.add("node");
    node.sought = specsOfNode.flatMap((spec) => [spec.title, `#${spec.node_id}`, spec.input, words(spec.input), spec.role || ""]).join("\n").toLowerCase();
    return node;
  });

  const important = specs.filter((spec) => spec.important), rest = specs.filter((spec) => !spec.important);
  const layout = toJSON(specs.map((spec) => [spec.node_id, spec.input, spec.title, spec.kind, spec.important, spec.options, spec.min, spec.max, spec.step]));
  if (app.layout === layout) specs.forEach((spec) => { const field = fields.get(keyOf(spec.node_id, spec.input)); field.spec = spec; receive(field, spec.value); });
  else {
    app.layout = layout;
    $("form").replaceChildren(...groupsOrFolds(groupsOf(important), "card", mostCards));
    if (!important.length) {
      $("form").append(h("p", { class: "card soft" }, app.status.comfyui.connected ? "This workflow has no main settings." : "The form will be complete when ComfyUI answers."));
      $("more").open = true;
    }
    const groups = groupsOf(rest), isBig = groups.length > mostCards;
    $("more-form").replaceChildren(...groupsOrFolds(groups, "", isBig ? 0 : mostCards));
    $("find-field-box").hidden = !isBig && groupsOf(important).length <= mostCards;
    if ($("find-field-box").hidden) $("find-field").value = "";
    findField();
    say($("more-title"), `More settings (${rest.length})`);
    for (const [key, field] of fields) if (shown.get(key) !== field) { clearTimeout(field.timer); fields.delete(key); }
    for (const [key, field] of shown) fields.set(key, field);
    if (document.contains(focused) && focused !== document.activeElement) focused.focus({ preventScroll: true });
  }
  fields.forEach(foresee);
  draw();
}

const mostCards = 8; // a form of more nodes is folded

/** Shows the nodes that have the words of the filter; those that are folded are opened where they are few. */
function findField() {
  const sought = $("find-field").value.trim().toLowerCase(), nodes = [...document.querySelectorAll(".node")];
  for (const node of nodes) node.hidden = !node.sought.includes(sought);
  const shown = nodes.filter((node) => !node.hidden), folds = shown.filter((node) => node.matches("details"));
  if (sought && folds.length <= 5) folds.forEach((fold) => { fold.open = true; });
  const isInMore = (node) => $("more").contains(node);
  $("more").hidden = !shown.some(isInMore);
  if (sought && shown.some(isInMore)) $("more").open = true;
  say($("no-field"), nodes.length && !shown.length ? "No setting matches." : "");
}

const workflowPath = (name) => `workflow?${new URLSearchParams({ name: name || "" })}`;
const problemLine = (problem) => `${problem.title || problem.node_id}: ${told(problem)}`;

/** Another workflow comes: what is in the fields is not its. */
function forgetFields() {
  for (const field of fields.values()) { clearTimeout(field.timer); field.dirty = field.refused = false; setError(field, ""); }
  app.layout = null;
  fields.clear();
}

/** PUT or reset, with a way back: what was held is put again by Undo, and its seeds are `drawn` again. */
async function replaceWorkflow(what, path, options, drawn = []) {
  const name = app.status ? app.status.workflow.file : "";
  await flush(); // what was typed belongs to the one that is left
  const random = [...fields.values()].map((field) => field.spec).filter((spec) => spec.random);
  try {
    const { prompt, draws } = await api("workflow"), before = app.held && { prompt, draws };
    const answer = await api(path, { timeout: 60, ...options }), problems = answer.problems || [];
    let { revision } = answer;
    for (const { node_id, input } of drawn) ({ revision } = await api("update/inputs", { method: "POST", body: toJSON({ node_id, inputs: { [input]: "random" } }) }));
    forgetFields();
    const undo = before && (() => replaceWorkflow("Undone.", workflowPath(name), { method: "PUT", body: toJSON(before) }, random));
    notice([what, ...problems.length ? ["ComfyUI would refuse to run it now:"] : [], ...problems.map(problemLine)].join("\n"), undo, !problems.length);
    wantWorkflow(revision);
    return true;
  } catch (error) {
    notice([error.words, ...(error.unsaid || []).map(problemLine)].join("\n"));
    return false;
  }
}

async function loadWorkflowFile(file) {
  await replaceWorkflow(`${file.name} is loaded.`, workflowPath(file.name), { method: "PUT", body: file });
}

/** Offers a document as a file called after the workflow. */
function downloadJSON(file, ending, content) {
  const name = String(file || "workflow").split(/[\\/]/).pop().replace(/(_api)?\.\w+$/, "");
  const url = URL.createObjectURL(new Blob([toJSON(content, 2), "\n"], { type: "application/json" }));
  h("a", { href: url, download: `${name}${ending}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

/** The workflow as it is edited now, as a file in API format; `forEditor`: in the format of ComfyUI's editor. */
async function downloadWorkflow(forEditor) {
  try {
    await flush();
    if (!forEditor) {
      const { file, prompt } = await api("workflow");
      downloadJSON(file, "_api", prompt);
      return;
    }
    const { file, workflow, not_saved } = await api("workflow?format=ui", { timeout: 60 });
    downloadJSON(file, "", workflow);
    const lines = not_saved.map(({ title, input }) => `${title} – ${words(input)}`);
    if (lines.length) notice(["The file is saved, but without these values. Set them in the editor:", ...lines].join("\n"));
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    notice(`The workflow cannot be saved: ${error.words}`);
  }
}

// ---------------------------------------------------------------- run and stop

let noticeAbout = new Set(); // the fields that the message above the buttons is about

/** A message above the buttons until it is closed; with `undo` it is good news, unless it is not `calm`. */
function notice(text, undo, calm = true, about = []) {
  const box = $("alert");
  noticeAbout = new Set(about);
  box.classList.toggle("calm", calm && undo !== undefined);
  const close = () => box.replaceChildren();
  box.replaceChildren(...text ? [h("span", {}, text), undo ? h("button", { type: "button", class: "plain", onclick: () => { close(); undo(); } }, "Undo") : "",
    h("button", { type: "button", class: "plain", "aria-label": "Close the message", onclick: close }, "✕")].filter(Boolean) : []);
}

/** Closes the message when nothing is wrong any more with the fields that it names. */
function forgetNotice(field) {
  if (noticeAbout.delete(field) && !noticeAbout.size) notice("");
}

const namesOf = (some) => some.map((field) => field.name).join(", ");

function started(answer) {
  app.selected = null;
  app.started.add(answer.prompt_id);
  const known = app.runs.has(answer.prompt_id); // its events may have overtaken the answer
  app.news = known ? "" : answer.ahead ? `Waiting: ${answer.ahead} ahead` : "Sent to ComfyUI";
  app.look = narrow(); // on a phone the page goes to the run when it is drawn
  if (app.link !== "open") poll();
  draw();
}

function showField(field) {
  unfold(field);
  field.input.focus({ preventScroll: true });
  field.box.scrollIntoView({ block: "nearest" });
}

const noAnswer = "Not started: the runner does not answer.";

/** Runs what is in the form, ``times`` times. ``keepsNotice``: what was said last stays, with its Undo. */
async function startRuns({ times = timesToRun(), keepsNotice = false } = {}) {
  if (app.sending || app.link === "login") return;
  app.unanswered = app.stopsAll = false;
  app.sent = 0;
  app.sending = true; // a second press while the first is on its way would run twice
  if (!keepsNotice) notice("");
  for (const field of fields.values()) if (!field.refused) setError(field, ""); // of the run before
  draw();
  try {
    const open = await flush();
    if (open.length) {
      notice(`Not started. See ${namesOf(open)}.`, undefined, true, open);
      showField(open[0]);
    } else {
      for (app.sent = 0; app.sent < times && !app.stopsAll; app.sent += 1) {
        draw();
        started(await api("queue", { method: "POST", body: "{}", timeout: 60 }));
      }
    }
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    const marked = mark(error.problems), elsewhere = error.unsaid.filter((one) => !fieldOf(one));
    // What is wrong with a field is said beside it; here it is only named.
    const line = marked.length ? `Not started. See ${namesOf(marked)}.` : app.sent ? `${app.sent} of ${times} started. ${error.words}` : error.status ? error.words : noAnswer;
    const about = elsewhere.length ? [] : marked;
    if (error.status !== 401) notice([line, ...elsewhere.map((one) => `${placeOf(one)}${told(one)}`)].join("\n"), undefined, true, about);
    app.unanswered = error.status === 0 && !app.sent; // that some were not started stays said
    app.news = app.sent ? "" : "Not started";
    if (marked.length) showField(marked[0]);
  } finally {
    app.sending = false;
    draw();
  }
}

/** How often Run runs: the number beside it, from 1 to 100. */
function timesToRun() {
  const times = Math.min(100, Math.max(1, Math.round($("times-to-run").valueAsNumber) || 1));
  $("times-to-run").value = times;
  return times;
}

/** Stops all runs of the runner, those that wait first: else the next one would begin. */
async function stopAll() {
  app.stopsAll = true; // no more are sent
  for (const run of sorted().filter(busy)) if (busy(app.runs.get(run.prompt_id) || run)) await stopRun(run.prompt_id);
}

async function stopRun(prompt_id) {
  app.stopping = prompt_id;
  draw();
  try {
    const answer = await api("interrupt", { method: "POST", body: toJSON({ prompt_id }), timeout: 30 });
    app.news = answer && answer.phase && !(app.runs.get(prompt_id) || {}).over ? "Stopping …" : "";
  } catch (error) { notice(error.words || String(error)); }
  app.stopping = null;
  draw();
}

// ---------------------------------------------------------------- the settings of an earlier run

const promptsOfRuns = new Map(); // of those that were looked at, by prompt_id; null: on its way, or not kept

async function wantPrompt({ prompt_id }) {
  if (promptsOfRuns.has(prompt_id)) return;
  promptsOfRuns.set(prompt_id, null);
  if (promptsOfRuns.size > 50) promptsOfRuns.delete(promptsOfRuns.keys().next().value);
  try {
    promptsOfRuns.set(prompt_id, (await api(`runs/${encodeURIComponent(prompt_id)}/prompt`)).prompt);
    draw();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status !== 404) setTimeout(() => promptsOfRuns.delete(prompt_id), 5000); // 404: it was not kept
  }
}

/** The fields whose value in a run's prompt is another one than now: [{field, value}]. */
function differences(run, prompt) {
  const isDatedName = ({ node_id, input }) => input === "filename_prefix" && `${node_id}.${input}` in (run.texts || {});
  return [...fields.values()].map((field) => {
    const { node_id, input } = field.spec, node = prompt[node_id];
    const isThere = node && node.inputs && !isDatedName(field.spec); // the form has the name with its %date%
    return { field, value: isThere ? node.inputs[input] : undefined };
  }).filter(({ field, value }) => value !== undefined && !Array.isArray(value) && (field.spec.random || toJSON(value) !== toJSON(field.server)));
}

const isLink = (value) => Array.isArray(value) && value.length === 2 && typeof value[0] === "string";

/** Nodes and links of a prompt, without values. */
function shapeOf(prompt) {
  return toJSON(Object.keys(prompt).sort().map((id) => [id, prompt[id].class_type, Object.entries(prompt[id].inputs || {}).filter(([, value]) => isLink(value)).sort()]));
}

/** Sets fields to JSON texts, "random" among them. */
function setFields(changes) {
  return Promise.all(changes.map(({ field, raw }) => {
    setError(field, "");
    if (raw !== '"random"') {
      field.spec.random = false;
      field.show(fromJSON(raw));
    }
    return post(field, raw);
  }));
}

/** Puts the settings of a run into the form, or its whole workflow where that was another one; whether that worked. */
async function useSettings(run, newSeed) {
  await flush();
  const prompt = promptsOfRuns.get(run.prompt_id);
  const seeds = Object.keys(run.seeds || {}).map((name) => ({ node_id: name.slice(0, name.indexOf(".")), input: name.slice(name.indexOf(".") + 1) }));
  if (shapeOf(prompt) !== shapeOf(app.held.prompt)) {
    const name = app.status ? app.status.workflow.file : "";
    return replaceWorkflow("The workflow of that run is loaded.", workflowPath(name), { method: "PUT", body: toJSON(prompt) }, newSeed ? seeds : []);
  }
  const drawn = newSeed ? seeds.map(({ node_id, input }) => fields.get(keyOf(node_id, input))).filter(Boolean) : [];
  const changes = differences(run, prompt).filter(({ field }) => !drawn.includes(field)).map(({ field, value }) => ({ field, raw: toJSON(value) }));
  changes.push(...drawn.map((field) => ({ field, raw: '"random"' })));
  const before = changes.map(({ field }) => ({ field, raw: field.spec.random ? '"random"' : toJSON(field.server) }));
  await setFields(changes);
  const wrong = changes.map(({ field }) => field).filter((field) => field.refused);
  if (wrong.length) notice(`Not all settings could be used. See ${namesOf(wrong)}.`, undefined, true, wrong);
  else notice("The settings of that run are in the form.", () => setFields(before));
  return !wrong.length;
}

async function runAgain(earlier) {
  if (await useSettings(earlier, true)) await startRuns({ times: 1, keepsNotice: true });
}

async function removeRun(run) {
  try {
    await api(`runs/${encodeURIComponent(run.prompt_id)}`, { method: "DELETE" });
    forgetRun(run.prompt_id);
  } catch (error) { notice(error.words || String(error)); }
  draw();
}

const shortValue = (value) => { const text = String(value); return text.length > 80 ? `${text.slice(0, 80)} …` : text; };

/** What a run ran with, and what can be done with that. */
function drawSettings(run) {
  const ended = run && run.over;
  if (ended) wantPrompt(run);
  const prompt = ended ? promptsOfRuns.get(run.prompt_id) : null, differing = prompt ? differences(run, prompt) : [];
  say($("positive"), run && run.positive || "");
  redraw($("differences"), toJSON([run && run.prompt_id, differing.map(({ field, value }) => [field.name, value, field.spec.random ? "" : field.server])]), () =>
    differing.map(({ field, value }) => h("li", {}, h("b", {}, field.spec.title === field.name ? field.name : `${field.spec.title} – ${words(field.spec.input)}`), ` ${shortValue(value)} `,
      h("small", {}, `now ${field.spec.random ? "random" : shortValue(field.server)}`))));
  $("differ").hidden = !differing.length;
  $("use-settings").hidden = !prompt;
  $("use-settings").disabled = !differing.length && prompt && app.held && shapeOf(prompt) === shapeOf(app.held.prompt);
  $("run-again").hidden = !prompt || !Object.keys(run.seeds || {}).length;
  $("remove-run").hidden = !ended;
}

// ---------------------------------------------------------------- drawing

const phases = { submitting: "Sending to ComfyUI", queued: "Waiting", running: "Running", success: "Done", error: "Failed", interrupted: "Stopped", deleted: "Removed from the queue", lost: "Lost", rejected: "Refused" };
const marks = { success: "✓", error: "!", rejected: "!", lost: "?", interrupted: "■", deleted: "■", running: "▶" };

function phaseText(run) {
  if (run.phase !== "queued") return phases[run.phase] || run.phase;
  return run.ahead === null || run.ahead === undefined ? "Waiting in the queue" : run.ahead ? `Waiting: ${run.ahead} ahead` : "Next in the queue";
}

/** How a run ended, in the words of the page. */
function endText(run) {
  if (run.phase === "success" && run.wholly_cached) return "Done. Nothing new was rendered: everything was in ComfyUI's cache. Press the dice of a seed, or change a value.";
  if (run.phase === "success") return `Done in ${seconds(run.seconds)}`;
  const [node] = run.ranLast || [], at = node || run.failure;
  const title = at && (at.title || at.class_type), step = node && node.max ? `, step ${node.value} of ${node.max}` : "";
  const where = title ? ` at ${title}` : "";
  if (run.phase === "error") return `Failed${where} after ${seconds(run.seconds)}`;
  if (run.phase === "interrupted") return `Stopped${where}${step}`;
  if (run.phase === "deleted") return "Removed from the queue before it ran";
  if (run.phase === "rejected") return "Refused by ComfyUI: nothing ran";
  return inPageWords(run.message) || phaseText(run);
}

function fraction(run) {
  const part = (run.running || []).reduce((sum, node) => sum + (node.max ? Math.min(1, node.value / node.max) : 0), 0);
  return run.nodes_total ? Math.min(1, (run.nodes_done + part) / run.nodes_total) : 0;
}

function setBar(bar, part, text) {
  bar.firstElementChild.style.transform = `scaleX(${part})`;
  bar.setAttribute("aria-valuenow", Math.round(part * 100));
  bar.setAttribute("aria-valuetext", text);
}

let drawing = 0;
function draw() { // a timer and not an animation frame: a tab in the background shows progress in its title
  if (!drawing) drawing = setTimeout(() => { drawing = 0; drawNow(); }, 40);
}

function drawNow() {
  const login = app.link === "login";
  $("login").hidden = !login;
  $("page").hidden = login;
  const active = activeRun(), latest = sorted()[0], part = active ? fraction(active) : 0;
  drawHeader(active, latest, part);
  drawProgress(active, part);
  drawResults(shownRun(active));
  drawRuns();
  $("stage").classList.toggle("ran", app.runs.size > 0);
  if (app.look && app.runs.size) {
    app.look = false;
    $("stage").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  }
}

function drawHeader(active, latest, part) {
  const { status } = app;
  const workflow = status && status.workflow, comfyui = status && status.comfyui;
  const file = workflow && workflow.file ? String(workflow.file).split(/[\\/]/).pop() : "Workflow Runner";
  say($("file"), file + (workflow && workflow.changed ? " (changed)" : ""));
  drawChoices(workflow);
  if (status) drawPhone(status.network_url);
  const trouble = app.link === "lost" ? "Connection lost, trying again …" : comfyui && !comfyui.connected ? `ComfyUI at ${comfyui.url} does not answer. Trying again …` : "";
  say($("server"), app.link === "lost" ? "Connection lost" : !comfyui ? "Connecting …" : comfyui.connected ? ["ComfyUI", comfyui.version, comfyui.device && `· ${comfyui.device}`].filter(Boolean).join(" ") : "ComfyUI does not answer");
  $("server").dataset.on = app.link !== "lost" && comfyui && comfyui.connected ? "yes" : "no";
  const idle = latest ? app.news || (latest.over ? endText(latest) : phaseText(latest)) : app.news || (app.link === "open" ? "Ready" : "Connecting …");
  say($("state"), trouble || (active ? phaseText(active) : idle));
  const waiting = [...app.runs.values()].filter((run) => busy(run) && run !== active).length;
  say($("waiting"), waiting ? `+${waiting} waiting` : "");
  say($("others"), othersText(comfyui));
  $("others").hidden = !$("others").textContent;
  const percent = active && active.phase === "running" ? `${Math.round(part * 100)}%` : "";
  say($("percent"), percent);
  $("strip").style.transform = `scaleX(${part})`;
  $("run").setAttribute("aria-busy", app.sending);
  say($("run"), !app.sending ? "Run" : app.sent ? `Sending ${app.sent + 1} …` : "Sending …");
  $("stop").disabled = !active || app.stopping === active.prompt_id;
  say($("stop"), active && app.stopping === active.prompt_id ? "Stopping …" : "Stop");
  document.title = percent ? `${percent} – ${file}` : active ? `${phases[active.phase]} – ${file}` : app.unseen ? `${app.unseen} – ${file}` : file;
}

/** Where a phone finds this page, or how to make it so. */
function drawPhone(url) {
  redraw($("phone"), `for ${url}`, () => url ? ["On your phone, open ", h("a", { href: url }, url)]
    : ["To open this page on a phone, start the service with --host 0.0.0.0 and --token SECRET."]);
}

/** Who else is in ComfyUI's queue: "Others in ComfyUI's queue: 1 running, 2 waiting". Nothing if nobody is. */
function othersText(comfyui) {
  const others = comfyui && comfyui.connected && comfyui.others;
  if (!others) return "";
  const counts = [others.running && `${others.running} running`, others.waiting && `${others.waiting} waiting`].filter(Boolean);
  return counts.length ? `Others in ComfyUI's queue: ${counts.join(", ")}` : "";
}

/** The seeds that a run uses: "Seed: 42"; of several, each with its node. */
function seedsText(run) {
  const seeds = Object.entries(run && run.seeds || {});
  if (seeds.length < 2) return seeds.map(([, value]) => `Seed: ${value}`).join("");
  const titleOf = (name) => {
    const dot = name.indexOf("."), field = fields.get(keyOf(name.slice(0, dot), name.slice(dot + 1)));
    return field ? `${field.spec.title} #${field.spec.node_id}` : name;
  };
  return `Seeds: ${seeds.map(([name, value]) => `${titleOf(name)}: ${value}`).join(", ")}`;
}

/** What a run alone has: its seeds, and the texts that were drawn for it. */
function ownText(run) {
  const drawn = Object.entries(run && run.texts || {}).filter(([name]) => !name.endsWith(".filename_prefix")).map(([, text]) => text);
  return [seedsText(run), drawn.length ? `Drawn: ${drawn.join(" / ")}` : ""].filter(Boolean).join("\n");
}

function drawProgress(run, part) {
  $("progress").hidden = !run;
  say($("progress-seeds"), ownText(run));
  if (!run) {
    $("preview").hidden = true;
    redraw($("nodes"), "", () => []);
    return;
  }
  say($("progress-title"), phaseText(run));
  say($("elapsed"), run.phase === "running" ? seconds(run.seconds + (performance.now() - run.received) / 1000) : "");
  $("overall-meter").hidden = run.phase !== "running";
  const count = `${run.nodes_done} of ${run.nodes_total} nodes`;
  say($("overall-text"), count);
  setBar($("overall"), part, `${Math.round(part * 100)}%, ${count}`);
  const nodes = run.running || [];
  redraw($("nodes"), toJSON([run.prompt_id, nodes.map((node) => node.node_id)]), () => nodes.map((node) => h("div", { class: "meter" },
    h("div", { class: "line" }, h("span", {}, node.title || node.class_type), h("span", {})),
    h("div", { class: "track thin", role: "progressbar", "aria-label": `Progress of ${node.title || node.class_type}`, "aria-valuemin": 0, "aria-valuemax": 100 }, h("div", {})))));
  nodes.forEach((node, at) => {
    const meter = $("nodes").children[at], text = node.max ? `${node.value} of ${node.max}` : "working";
    say(meter.firstElementChild.lastElementChild, text);
    setBar(meter.lastElementChild, node.max ? Math.min(1, node.value / node.max) : 0, text);
    if (!node.max) meter.lastElementChild.removeAttribute("aria-valuenow"); // how far is not known
  });
  if ($("preview").run !== run.prompt_id) { $("preview").hidden = true; $("preview").run = run.prompt_id; }
}

/** Where a problem is: "KSampler – Steps: ". */
function placeOf(fault) {
  const names = [fault.title || fault.class_type, fault.input && words(fault.input)].filter(Boolean);
  return names.length ? `${names.join(" – ")}: ` : "";
}

/** One problem or failure in words, with the way to its field. */
function faultItem(fault) {
  const field = fieldOf(fault), [first] = fieldsOf(fault.node_id);
  return h("li", {}, h("strong", {}, placeOf(fault)), inPageWords(fault.message || fault.type), ...(fault.hints || []).map((hint) => h("div", { class: "soft" }, inPageWords(hint))),
    first ? h("div", { class: "below" }, h("button", { type: "button", onclick: () => showField(field || first) }, field ? "Go to the field" : "Go to its settings")) : "",
    (fault.traceback || []).length ? h("details", {}, h("summary", {}, "Traceback"), h("pre", {}, fault.traceback.join("\n").replace(/\n+/g, "\n"))) : "");
}

// ---------------------------------------------------------------- full screen: the pictures of all runs, the newest first

const viewer = { pictures: [], at: 0, touch: null };

function openViewer(output) {
  viewer.pictures = sorted().flatMap((run) => run.outputs.filter(({ kind, url }) => kind === "image" && url).map((one) => ({ run, output: one })));
  viewer.at = viewer.pictures.findIndex((one) => outputURL(one.output) === outputURL(output));
  if (viewer.at < 0) viewer.at = viewer.pictures.push({ run: null, output }) - 1;
  showPicture(0);
  $("viewer").showModal();
}

/** The picture that is `by` places further in the list. */
function showPicture(by) {
  viewer.at = Math.min(viewer.pictures.length - 1, Math.max(0, viewer.at + by));
  const { run, output } = viewer.pictures[viewer.at];
  const about = [output.filename, run && run.positive, run && seedsText(run)].filter(Boolean).join(" · ");
  $("viewer-picture").src = outputURL(output);
  $("viewer-picture").alt = about;
  say($("viewer-about"), `${viewer.at + 1} of ${viewer.pictures.length} · ${about}`);
  $("viewer-newer").disabled = viewer.at === 0;
  $("viewer-older").disabled = viewer.at === viewer.pictures.length - 1;
}

$("viewer-newer").addEventListener("click", () => showPicture(-1));
$("viewer-older").addEventListener("click", () => showPicture(1));
$("viewer-close").addEventListener("click", () => $("viewer").close());
$("viewer").addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") showPicture(-1);
  if (event.key === "ArrowRight") showPicture(1);
});
$("viewer").addEventListener("touchstart", ({ touches }) => { viewer.touch = touches.length === 1 ? touches[0] : null; }, { passive: true }); // two fingers zoom
$("viewer").addEventListener("touchend", ({ changedTouches: [end] }) => {
  const start = viewer.touch, isZoomed = window.visualViewport && visualViewport.scale > 1.05;
  viewer.touch = null;
  if (!start || isZoomed) return;
  const across = end.clientX - start.clientX, down = end.clientY - start.clientY;
  if (Math.abs(across) > 50 && Math.abs(across) > Math.abs(down)) showPicture(across < 0 ? 1 : -1);
});

// ---------------------------------------------------------------- results

const pictureLoaders = () => [...fields.values()].filter(({ spec }) => spec.kind === "upload" && spec.media === "image");

/** Uploads a picture that a run made, for a node that loads one. */
async function usePicture(output, field) {
  try {
    const answer = await fetch(outputURL(output), { signal: AbortSignal.timeout(60000) });
    if (!answer.ok) throw new Refused(answer.status);
    const file = new File([await answer.blob()], output.filename || "picture.png", { type: answer.headers.get("Content-Type") || "" });
    const key = keyOf(field.spec.node_id, field.spec.input);
    if (!fields.has(key)) return notice("The form has changed. Choose the picture again.");
    await sendFile(fields.get(key), file);
    if (fields.has(key)) showField(fields.get(key)); // the upload may have built it anew
  } catch (error) {
    notice(`The picture was not loaded. ${error.words || "The runner does not answer."}`);
  }
}

/** The buttons that make a picture the input of a loader; of several each is named. */
function useButtons(output) {
  const loaders = pictureLoaders();
  return loaders.map((field) => h("button", { type: "button", onclick: () => usePicture(output, field) }, loaders.length > 1 ? `Use in ${field.name}` : "Use as input"));
}

function figure(output) {
  const url = outputURL(output), download = `${url}${url.includes("?") ? "&" : "?"}download=1`, name = output.filename || output.title || output.kind;
  if (output.text !== null) { // else it is a file, of text too
    const copy = navigator.clipboard ? h("button", { type: "button", onclick: (event) => navigator.clipboard.writeText(output.text || "").then(() => say(event.target, "Copied"), () => {}) }, "Copy") : "";
    return h("figure", {}, h("pre", { tabindex: 0, "aria-label": output.title }, output.text || ""), h("figcaption", {}, h("span", {}, output.title), copy));
  }
  if (!output.url) return h("figure", {}, h("figcaption", {}, `${output.title}: ${name} is not kept.`));
  const media = { image: () => h("a", { href: url, target: "_blank", rel: "noopener", title: "Full screen", onclick: (event) => view(event, output) }, h("img", { src: url, alt: `${output.title}: ${name}` })),
    video: () => h("video", { src: url, controls: true, loop: true, playsinline: true, preload: "metadata", "aria-label": name }),
    audio: () => h("audio", { src: url, controls: true, preload: "metadata", "aria-label": name }) }[output.kind];
  return h("figure", {}, media ? media() : h("a", { href: url, target: "_blank", rel: "noopener" }, name),
    h("figcaption", {}, h("span", {}, output.title || "", h("br"), h("small", {}, output.filename || "")), ...output.kind === "image" ? useButtons(output) : [], h("a", { class: "button", href: download, download: output.filename || "", "aria-label": `Download ${name}` }, "Download")));
}

/** A plain click shows a picture in full screen; with Ctrl it opens in a tab, as any link. */
function view(event, output) {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  openViewer(output);
}

function drawResults(run) {
  $("nothing").hidden = app.runs.size > 0;
  $("results").hidden = !run && app.runs.size > 0;
  const outputs = run ? run.outputs : [];
  say($("results-about"), run ? [clock(run.created), run.over ? endText(run) : phaseText(run)].join(" · ") : "");
  say($("seeds"), ownText(run));
  drawSettings(run);
  redraw($("faults"), toJSON(run && [run.prompt_id, run.failure, run.problems, run.phase]), () => {
    const faults = run ? [...run.failure ? [run.failure] : [], ...run.problems || []] : [];
    return faults.length ? [h("div", { class: "card bad" }, h("ul", {}, ...faults.map(faultItem)))] : [];
  });
  redraw($("outputs"), toJSON(run && [run.prompt_id, outputs, pictureLoaders().map((field) => [keyOf(field.spec.node_id, field.spec.input), field.name])]), () => outputs.map(figure));
  $("outputs").classList.toggle("many", outputs.length > 1);
  const nodes = run && run.over ? run.nodes || [] : [];
  $("times").hidden = !nodes.length;
  redraw($("times").lastElementChild, toJSON(nodes), () => nodes.map((node) => h("li", {}, h("span", {}, node.title || node.class_type), h("span", { class: "soft" }, node.seconds === null ? "" : seconds(node.seconds)))));
}

// Thumbnails are loaded as they come into view, and few at a time: ComfyUI makes each from the whole picture.
const thumbnails = { most: 4, loading: 0, waiting: new Set() };
const thumbnailsInView = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) thumbnails.waiting.add(target);
    else thumbnails.waiting.delete(target);
  }
  loadThumbnails();
}, { rootMargin: "200px" });

function loadThumbnails() {
  for (const image of thumbnails.waiting) {
    if (thumbnails.loading >= thumbnails.most) return;
    thumbnails.waiting.delete(image);
    thumbnailsInView.unobserve(image);
    thumbnails.loading += 1;
    const over = () => { thumbnails.loading -= 1; loadThumbnails(); };
    image.addEventListener("load", over, { once: true });
    image.addEventListener("error", over, { once: true });
    image.src = image.dataset.src;
  }
}

function thumbnail(output) {
  const url = outputURL(output);
  const image = h("img", { class: "thumb", "data-src": url.startsWith("view?") ? `${url}&preview=webp` : url, alt: "" });
  thumbnailsInView.observe(image);
  return image;
}

/** What a run is found by. */
function textOf(run) {
  return [run.positive, endText(run), ...Object.values(run.seeds || {}), ...run.outputs.map((output) => output.filename)].join("\n").toLowerCase();
}

function chooseRun(run) {
  app.selected = run.prompt_id;
  draw();
  if (narrow()) $("results").scrollIntoView();
}

function runRow(run, waits) {
  const picture = run.outputs.find((output) => output.kind === "image" && output.url), how = run.over ? endText(run) : phaseText(run);
  return [
    h("button", { type: "button", class: "plain show", onclick: () => chooseRun(run) },
      picture ? thumbnail(picture) : h("span", { class: "thumb", "aria-hidden": "true" }, marks[run.phase] || "…"),
      h("span", {}, h("b", {}, run.positive || how), h("small", {}, [clock(run.created), run.positive && how, seedsText(run)].filter(Boolean).join(" · ")))),
    waits ? h("button", { type: "button", "aria-label": `Remove the run of ${clock(run.created)} from the queue`, onclick: () => stopRun(run.prompt_id) }, "Remove") : null];
}

const rows = new Map();
function drawRuns() {
  const active = activeRun(), shown = shownRun(active), all = sorted(); // the active run has the big Stop
  const sought = $("find").value.trim().toLowerCase(), runs = sought ? all.filter((run) => textOf(run).includes(sought)) : all;
  if (sought) loadMore(1000); // earlier pages are looked through as well
  $("earlier").hidden = !all.length;
  $("latest").hidden = !app.selected;
  $("stop-all").hidden = all.filter(busy).length < 2;
  $("find-box").hidden = all.length < 5 && !sought;
  say($("runs-end"), app.next ? "Loading earlier runs …" : sought && !runs.length ? "No runs match." : "");
  const listed = new Set(runs.map((run) => run.prompt_id));
  for (const [id, row] of rows) if (!listed.has(id)) { row.remove(); rows.delete(id); }
  let next = $("runs").firstElementChild;
  for (const run of runs) {
    let row = rows.get(run.prompt_id);
    if (!row) rows.set(run.prompt_id, row = h("li", {}));
    if (row === next) next = next.nextElementSibling;
    else $("runs").insertBefore(row, next);
    const waits = busy(run) && run !== active, picture = run.outputs.find((output) => output.kind === "image" && output.url);
    if (row.run !== run || row.waits !== waits) redraw(row, toJSON([run.phase, run.over, run.ahead, run.message, picture, waits, run.seeds]), () => { row.isCurrent = null; return runRow(run, waits); });
    Object.assign(row, { run, waits });
    if (row.isCurrent !== (shown === run)) row.firstElementChild.setAttribute("aria-current", row.isCurrent = shown === run);
  }
}

// ---------------------------------------------------------------- staying connected

// Browsers allow six connections to one host, and a stream of events holds one of them. So the tabs of one browser share a stream:
// they stand in line for a lock, and the one that holds it listens and hands on to the others what it hears. Browsers have locks only
// with HTTPS or on the machine itself; without them every tab that is shown listens for itself.
const streamName = `events of ${location.pathname}`;
const channel = navigator.locks && window.BroadcastChannel ? new BroadcastChannel(streamName) : null;
let turn = null; // our place in the line: {listens, leave()}

let source = null, streaming = false, failures = 0, listenAt = 0; // the events; streaming: also what another tab hands on
let heard = 0, polling = false, retry = 0, hiddenAt = 0;

/** A run as the page keeps it. */
function withDefaults(run) {
  return Object.assign(run, { outputs: run.outputs || [], problems: run.problems || [], received: performance.now() });
}

function takeRun(run) {
  const before = app.runs.get(run.prompt_id);
  if (before && before.over && !run.over) return; // an answer to /runs that an event has overtaken
  // An end comes without the nodes that ran: where it stopped is what was seen last.
  run.ranLast = run.running && run.running.length ? run.running : before ? before.ranLast : [];
  app.runs.set(run.prompt_id, withDefaults(run));
  if (!before || before.phase !== run.phase) app.news = "";
  if (!app.live || !run.over || (before && before.over)) return;
  // Words beside a field move the page: who looks at the run goes on looking at it.
  if (narrow() && Math.abs($("stage").getBoundingClientRect().top) < 100) app.look = true;
  mark([...run.problems || [], ...run.failure ? [run.failure] : []]); // only when it happens: later the value may be mended
  if (document.hidden) app.unseen = phases[run.phase];
}

function takeStatus(status) {
  const before = app.status;
  app.status = status;
  if (before && !before.comfyui.connected && status.comfyui.connected) app.revision = null; // now it is known what the fields are
  wantWorkflow(status.workflow.revision);
}

function takeState(status, runs) {
  const first = app.link !== "open";
  app.link = "open";
  if (app.unanswered) { // it is back
    app.unanswered = false;
    notice("");
  }
  const ids = new Set(runs.map((run) => run.prompt_id)), oldest = runs.length < pageOfRuns ? 0 : runs[runs.length - 1].created;
  for (const [id, run] of app.runs) if (!ids.has(id) && run.created >= oldest) app.runs.delete(id); // older ones are on later pages
  runs.forEach(takeRun);
  app.live = true;
  takeStatus(status);
  if (first) for (const field of fields.values()) if (field.dirty && !field.refused && !field.timer) sendEdit(field);
  draw();
}

function forgetRun(prompt_id) {
  app.runs.delete(prompt_id);
  if (app.selected === prompt_id) app.selected = null;
}

/** Reads the next page of earlier runs. */
async function loadMore(limit = pageOfRuns) {
  if (app.loadingMore || !app.next || app.link !== "open" || performance.now() < app.moreAt) return;
  app.loadingMore = true;
  try {
    const { runs, next } = await api(app.next.replace(/limit=\d+/, `limit=${limit}`), { timeout: 30 });
    app.next = next;
    for (const run of runs) if (!app.runs.has(run.prompt_id)) app.runs.set(run.prompt_id, withDefaults(run));
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    app.moreAt = performance.now() + 5000; // then it is asked again
  } finally { app.loadingMore = false; }
  draw();
}

/** Whether what happens matters now: a hidden tab catches up when it is shown, unless a run that was started in it is not over. */
function attentive() {
  if (app.link === "login") return false;
  return !document.hidden || [...app.started].some((id) => app.runs.has(id) && busy(app.runs.get(id)));
}

/** Listens, or gets in line for it, or leaves the line: as it should be now. */
function attend() {
  if (!attentive()) leave();
  else if (channel && !turn) getInLine();
  else if (!channel && document.hidden) hangUp(); // it asks now and then instead
  const mayListen = attentive() && (channel ? turn.listens : !document.hidden);
  if (mayListen && !source && app.link === "open" && performance.now() >= listenAt) listen();
}

function getInLine() {
  const out = new AbortController(), place = turn = { listens: false };
  const left = new Promise((resolve) => { place.leave = () => { out.abort(); resolve(); }; });
  navigator.locks.request(streamName, { signal: out.signal }, () => {
    place.listens = true;
    if (turn === place) attend();
    return left;
  }).catch(() => {}); // it left before its turn
}

function leave() {
  hangUp();
  if (turn) turn.leave();
  turn = null;
}

function hangUp() {
  if (source) source.close();
  source = null;
  streaming = false;
}

const takers = {
  state: (data) => takeState(data.status, data.runs),
  run: takeRun,
  removed: (data) => forgetRun(data.prompt_id),
  status: takeStatus,
  workflow: (data) => wantWorkflow(data.revision),
  preview: showPreview,
};

function take(name, text) {
  heard = performance.now();
  takers[name](fromJSON(text));
  draw();
}

function listen() {
  hangUp();
  const stream = source = new EventSource("events");
  for (const name of Object.keys(takers)) {
    stream.addEventListener(name, (event) => {
      if (stream !== source) return;
      if (name === "state") { streaming = true; failures = 0; }
      if (channel) channel.postMessage([name, event.data]);
      take(name, event.data);
    });
  }
  // It would connect again by itself, but not after an answer of 401 or 502, and without telling which: so /status is asked.
  stream.addEventListener("error", () => {
    if (stream !== source) return;
    if (!streaming) listenAt = performance.now() + Math.min(30, 2 ** ++failures) * 1000; // a proxy without events: /status and /runs meanwhile
    hangUp();
    if (channel) channel.postMessage(["lost"]);
    askAgain();
  });
}

if (channel) {
  channel.addEventListener("message", ({ data: [name, text] }) => {
    if (!turn || turn.listens) return;
    streaming = name !== "lost";
    if (streaming) take(name, text);
    else askAgain();
  });
}

function askAgain() {
  app.restarts += 1;
  app.revision = null; // a runner that was restarted counts from the start again: the same number may be another workflow
  poll();
}

/** Asks for everything once. It mends a lost connection, finds a deaf one, and is the way where a proxy holds events back. */
async function poll() {
  if (polling) return;
  polling = true;
  clearTimeout(retry);
  try {
    const [status, { runs, next }] = await Promise.all([api("status", { timeout: 6 }), api("runs", { timeout: 10 })]);
    if (app.next === undefined) app.next = next;
    const deaf = streaming && (status.workflow.revision !== app.revision || runs.some((run) => (app.runs.get(run.prompt_id) || {}).phase !== run.phase));
    heard = performance.now();
    takeState(status, runs);
    if (deaf) hangUp();
    attend();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (app.link !== "login") {
      app.link = "lost";
      retry = setTimeout(poll, 2500);
    }
    draw();
  } finally { polling = false; }
}

function askToken() {
  leave();
  clearTimeout(retry);
  const first = app.link !== "login";
  app.link = "login";
  drawNow();
  if (first) $("token").focus();
}

// One picture at a time is on its way; of those that come meanwhile the last counts.
let previews = 0, loading = false, pending = null;
function showPreview(data) {
  if (document.hidden) return;
  if (loading) { pending = data; return; }
  loading = true;
  const picture = new Image();
  const next = () => { loading = false; if (pending) { const then = pending; pending = null; showPreview(then); } };
  picture.addEventListener("load", () => {
    const active = activeRun();
    if (active && active.prompt_id === data.prompt_id) { $("preview").src = picture.src; $("preview").run = data.prompt_id; $("preview").hidden = false; }
    next();
  });
  picture.addEventListener("error", next);
  picture.src = `preview?${new URLSearchParams({ prompt_id: data.prompt_id, n: ++previews })}`;
}

// ---------------------------------------------------------------- the page's own controls

$("run").addEventListener("click", () => startRuns());
$("stop").addEventListener("click", () => { const active = activeRun(); if (active) stopRun(active.prompt_id); });
$("use-settings").addEventListener("click", () => useSettings(shownRun(activeRun()), false));
$("run-again").addEventListener("click", () => runAgain(shownRun(activeRun())));
$("remove-run").addEventListener("click", () => removeRun(shownRun(activeRun())));
$("stop-all").addEventListener("click", stopAll);
$("find-field").addEventListener("input", findField);
$("find").addEventListener("input", draw);
new IntersectionObserver(([{ isIntersecting }]) => {
  app.endOfRunsIsInView = isIntersecting;
  if (isIntersecting) loadMore();
}, { rootMargin: "600px" }).observe($("runs-end"));
$("latest").addEventListener("click", () => { app.selected = null; draw(); });
$("choices").addEventListener("change", (event) => chooseWorkflow(event.target.value));
$("choices").addEventListener("focus", () => readChoices().then(draw, () => {})); // a file may have been mended meanwhile
$("load").addEventListener("click", () => { $("menu").open = false; $("load-file").click(); });
$("load-file").addEventListener("change", (event) => { const [file] = event.target.files; event.target.value = ""; if (file) loadWorkflowFile(file); });
$("download").addEventListener("click", () => { $("menu").open = false; downloadWorkflow(false); });
$("download-ui").addEventListener("click", () => { $("menu").open = false; downloadWorkflow(true); });
$("reset").addEventListener("click", () => { $("menu").open = false; replaceWorkflow("The workflow was reset to the file.", "workflow/reset", { method: "POST", body: "{}" }); });
addEventListener("click", (event) => { if (!$("menu").contains(event.target)) $("menu").open = false; });
addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.repeat) { event.preventDefault(); startRuns(); }
  if (event.key === "Escape" && $("menu").open) { $("menu").open = false; $("menu").firstElementChild.focus(); }
});
$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await api("login", { method: "POST", body: toJSON({ token: $("token").value }) });
    $("token").value = "";
    say($("token-error"), "");
    app.link = "connecting";
    poll();
  } catch (error) {
    say($("token-error"), error.status === 403 || error.status === 401 ? "Wrong token." : error.words || String(error));
    $("token").focus();
  }
});

document.addEventListener("visibilitychange", () => {
  if (document.hidden) { hiddenAt = performance.now(); attend(); return; }
  app.unseen = "";
  // A phone that slept often holds a connection that is dead and does not know it.
  if (performance.now() - hiddenAt > 30000) hangUp();
  attend();
  if (app.link !== "login") poll(); // for what happened meanwhile
  draw();
});
addEventListener("pagehide", leave);
addEventListener("pageshow", (event) => { if (event.persisted && app.link !== "login") poll(); });
setInterval(() => {
  if (app.endOfRunsIsInView) loadMore(); // where the last answer was none, or was short
  if (activeRun()) draw(); // seconds go on
  attend();
  const patience = streaming ? 25000 : 2500;
  if (attentive() && (app.link === "open" || app.link === "connecting") && performance.now() - heard > patience) poll();
}, 1000);

$("page").hidden = false;
poll();
