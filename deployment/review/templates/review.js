// The review page: one task after the other, by keyboard alone. Whatever fails leaves the text where it is.
"use strict";

const BACK_S = 2, SPEEDS = [1, 0.75, 0.5], UNSURE = 0.8, VERY_UNSURE = 0.5;
const at = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const audio = new Audio();
const text = at("text"), wave = at("wave");

let who = "", current = null, following = null, saving = false, speed = 0, done = 0;
const before = [];  // what was saved here, the last one last
const later = [];  // what was put back by an undo

async function post(path, body) {
  let answer;
  try {
    answer = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Soundstage": "review" },
      body: JSON.stringify({ who, ...body }),
    });
  } catch {
    throw new Error("The server does not answer. Your text is still here: try again.");
  }
  const said = await answer.json().catch(() => ({}));
  if (answer.ok) return said;
  const problem = new Error(said.detail || `The server answered ${answer.status}: try again.`);
  problem.status = answer.status;
  throw problem;
}

function say(sentence, problem = false) {
  at("said").textContent = sentence;
  at("said").classList.toggle("problem", problem);
}

// A task with its sound, ready to be shown; null where none waits.
async function fetched(beside, task = "") {
  const filters = Object.fromEntries(["language", "hour", "why", "state"].map((name) => [name, query.get(name) || ""]));
  const found = await post("next", task ? { task } : { only: filters, beside });
  who = found.who;
  at("progress").textContent = `${who} · ${done} done · ${found.waiting} waiting`;
  at("elsewhere").textContent = found.waiting
    ? `Others have ${found.waiting} before them; what they leave can be had again a while later: reload then.`
    : "Thank you.";
  if (!found.task) return null;
  const clip = await fetch(`clip/${found.task.id}`);
  if (!clip.ok) throw new Error(`The sound cannot be had: ${await clip.text()}`);
  const bytes = await clip.arrayBuffer();
  const url = URL.createObjectURL(new Blob([bytes], { type: "audio/flac" }));
  const sound = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(bytes);
  return { ...found.task, url, samples: sound.getChannelData(0), length_s: sound.duration, seconds: 0 };
}

function ahead() {
  following = fetched([current.id]);
  following.catch(() => {});  // it is told when it is wanted
}

function show(item) {
  current = item;
  say("");
  at("task").hidden = !item;
  at("done").hidden = Boolean(item);
  if (!item) return;
  item.since = performance.now();
  audio.src = item.url;
  audio.playbackRate = SPEEDS[speed];
  write(item);
  at("about").textContent = `${item.language}, ${item.why}, confidence ${item.confidence.toFixed(2)}`;
  choosing(false);
  text.blur();
  draw();
  audio.play().catch(() => {});  // browsers wait for a first key
}

// The words, each with how sure it is; a text that somebody wrote is shown as it was written.
function write(item) {
  text.replaceChildren();
  text.lang = item.language;
  text.dir = "auto";
  const draft = item.draft ?? sessionStorage.getItem(item.id) ?? item.said;
  if (draft !== null && draft !== undefined && draft !== item.text) text.textContent = draft;
  else spell(item);
  text.dir = getComputedStyle(text).direction;  // it stays, whatever is typed first
}

function spell(item) {
  let from = 0;
  for (const word of item.words) {
    const place = item.text.indexOf(word.text, from);
    if (place < 0) continue;
    text.append(item.text.slice(from, place));
    const span = document.createElement("span");
    span.textContent = span.dataset.heard = word.text;
    span.title = `${Math.round(word.confidence * 100)} % sure`;
    span.className = word.confidence < VERY_UNSURE ? "low" : word.confidence < UNSURE ? "mid" : "";
    text.append(span);
    from = place + word.text.length;
  }
  text.append(item.text.slice(from));
}

const written = () => text.textContent.replace(/\s+/g, " ").trim();

function draw() {
  const scale = window.devicePixelRatio || 1, width = wave.clientWidth * scale, height = wave.clientHeight * scale;
  if (!current || !width) return;
  wave.width = width;
  wave.height = height;
  const pen = wave.getContext("2d"), look = getComputedStyle(document.body);
  const [accent, muted, line] = ["--accent", "--muted", "--line"].map((name) => look.getPropertyValue(name));
  const across = (seconds) => (seconds / current.length_s) * width;
  pen.fillStyle = line;
  pen.globalAlpha = 0.6;
  pen.fillRect(across(current.start_s), 0, across(current.end_s - current.start_s), height);
  pen.globalAlpha = 1;
  const samples = current.samples, step = Math.max(1, Math.floor(samples.length / width));
  const loudest = samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0.01);
  for (let x = 0; x < width; x += scale * 2) {
    let peak = 0;
    const first = Math.floor((x / width) * samples.length);
    for (let n = first; n < first + step * scale * 2 && n < samples.length; n++) peak = Math.max(peak, Math.abs(samples[n]));
    const seconds = (x / width) * current.length_s, bar = Math.max(scale, (peak / loudest) * (height - 8 * scale));
    pen.fillStyle = seconds >= current.start_s && seconds <= current.end_s ? accent : muted;
    pen.fillRect(x, (height - bar) / 2, scale * 1.4, bar);
  }
  pen.fillStyle = look.getPropertyValue("--fail");
  pen.fillRect(across(audio.currentTime) - scale, 0, scale * 2, height);
  at("time").textContent = `${audio.currentTime.toFixed(1)} of ${current.length_s.toFixed(1)} s`;
  at("speed").textContent = SPEEDS[speed] === 1 ? "" : `${SPEEDS[speed]} × speed`;
}

function follow() {
  draw();
  if (!audio.paused) requestAnimationFrame(follow);
}

function rest() {  // the time that is spent on a task counts while it is seen
  if (current?.since) current.seconds += (performance.now() - current.since) / 1000;
  if (current) current.since = 0;
}

async function save(kind, reason = "") {
  if (!current || saving) return;
  saving = true;
  rest();
  const item = current, words = written();
  try {
    await post("answer", { task: item.id, kind, reason, text: kind === "text" ? words : "", seconds: item.seconds });
    item.draft = words;
    before.push(item);
    done += 1;
    forget(item);
    await go();
  } catch (problem) {
    item.since = performance.now();
    if (problem.status === 404 || problem.status === 409) {  // nobody is asked any more
      forget(item);
      await go().catch(() => {});
    }
    say(problem.message, true);
  } finally {
    saving = false;
  }
}

function forget(item) {
  sessionStorage.removeItem(item.id);
  audio.pause();
}

async function go() {
  let next = later.pop();
  if (!next) {
    const waiting = following;
    following = null;
    next = (await waiting) ?? (await fetched([]));
  }
  show(next);
  if (current && !following) ahead();
}

async function undo() {
  if (saving || !before.length) return say("There is nothing to undo.");
  saving = true;
  const item = before[before.length - 1];
  try {
    await post("answer", { task: item.id, kind: "withdrawn" });
    before.pop();
    done -= 1;
    if (current) {
      rest();
      current.draft = written();
      later.push(current);
    }
    show(item);
    say("Your last answer is taken back: save it anew.");
  } catch (problem) {
    say(problem.message, true);
  } finally {
    saving = false;
  }
}

function choosing(open) {
  at("why").hidden = !open;
  at("keys").hidden = open;
  if (open) text.blur();
}

function edit() {
  text.focus();
  const unsure = text.querySelector(".low, .mid");
  const range = document.createRange();
  range.selectNodeContents(unsure ?? text);
  if (!unsure) range.collapse(false);
  getSelection().removeAllRanges();
  getSelection().addRange(range);
}

const acts = {
  save: () => save("text"),
  play: () => (audio.paused ? audio.play() : audio.pause()),
  back: () => { audio.currentTime = Math.max(0, audio.currentTime - BACK_S); draw(); },
  slower: () => { speed = (speed + 1) % SPEEDS.length; audio.playbackRate = SPEEDS[speed]; draw(); },
  edit,
  unusable: () => choosing(true),
  undo,
};
const keys = { " ": "play", ArrowLeft: "back", s: "slower", e: "edit", x: "unusable", u: "undo" };

// A key by its letter; on a layout without Latin letters by where it lies.
function key(event) {
  if (/^[a-z]$/i.test(event.key)) return event.key.toLowerCase();
  return /^Key[A-Z]$/.test(event.code) && event.key.length === 1 ? event.code[3].toLowerCase() : event.key;
}

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.keyCode === 229) return;  // an input method is at work
  if (event.ctrlKey || event.metaKey || event.altKey || !who || !at("sign").hidden) return;
  if (!current && key(event) !== "u") return;
  const inside = document.activeElement, typing = inside === text;
  let act = null;
  if (!at("why").hidden) {
    const buttons = [...at("why").querySelectorAll("button")];
    const chosen = event.key === "Escape" ? buttons.at(-1) : buttons.slice(0, -1)[Number(event.key) - 1];
    act = chosen && (() => chosen.click());
  } else if (event.key === "Enter" && !["BUTTON", "A", "INPUT"].includes(inside.tagName)) {
    act = event.repeat ? () => {} : acts.save;
  } else if (typing) {
    if (event.key === "Tab") act = event.shiftKey ? acts.back : acts.play;
    if (event.key === "Escape") act = () => text.blur();
  } else if (!(event.key === " " && inside.tagName === "BUTTON")) {
    act = acts[keys[key(event)]];
  }
  if (!act) return;
  event.preventDefault();
  act();
});

at("keys").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  button.blur();
  acts[button.dataset.do]();
});
at("why").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  choosing(false);
  if (button.dataset.reason) save("unusable", button.dataset.reason);
});
wave.addEventListener("click", (event) => {
  audio.currentTime = (event.offsetX / wave.clientWidth) * current.length_s;
  draw();
});
text.addEventListener("input", () => {
  for (const span of text.querySelectorAll("span[data-heard]")) {
    if (span.textContent !== span.dataset.heard) span.className = "changed";
  }
  if (!written()) text.replaceChildren();
  sessionStorage.setItem(current.id, written());
});
text.addEventListener("paste", (event) => {  // words alone, whatever they were copied from
  event.preventDefault();
  document.execCommand("insertText", false, event.clipboardData.getData("text/plain").replace(/\s+/g, " "));
});
text.addEventListener("drop", (event) => event.preventDefault());
text.addEventListener("focus", () => { at("typing").hidden = false; });
text.addEventListener("blur", () => { at("typing").hidden = true; });
audio.addEventListener("play", follow);
audio.addEventListener("pause", draw);
window.addEventListener("resize", draw);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) rest();
  else if (current) current.since = performance.now();
});

async function begin() {
  try {
    show(await fetched([], query.get("task") || ""));
    at("sign").hidden = true;
    if (who) localStorage.setItem("soundstage-reviewer", who);
    if (current) ahead();
  } catch (problem) {
    say(problem.message, true);
    if (problem.status === 403 && !document.body.dataset.signedIn) {
      at("sign").hidden = false;
      at("name").focus();
    }
  }
}

at("sign").addEventListener("submit", (event) => {
  event.preventDefault();
  who = at("name").value;
  begin();
});
who = localStorage.getItem("soundstage-reviewer") || "";
if (who || document.body.dataset.signedIn) begin();
else {
  at("sign").hidden = false;
  at("name").focus();
}
