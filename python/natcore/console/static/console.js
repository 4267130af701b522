// The console's script: parts that are live, local times, and forms that are sent once. Pages work without it.
"use strict";

// ---- times: UTC is in the page; the local time is added where it differs ----
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;

function addLocalTimes(root) {
  for (const time of root.querySelectorAll("time[data-local]")) {
    const at = new Date(time.dateTime);
    const short = time.dataset.local === "short";
    delete time.dataset.local;
    if (at.getTimezoneOffset() === 0) continue;
    const parts = short ? { hour: "2-digit", minute: "2-digit" } : { dateStyle: "short", timeStyle: "medium" };
    const local = new Intl.DateTimeFormat(undefined, { hour12: false, ...parts }).format(at);
    const span = document.createElement("span");
    span.className = "local";
    span.textContent = ` = ${local} ${short ? "local" : zone}`;
    time.append(span);
  }
}

// ---- the live part: its HTML comes anew, from this console alone, which has escaped what is foreign ----
const part = document.querySelector("[data-live]:not([data-live=''])");
const pulse = document.getElementById("pulse");
const pause = document.getElementById("pause");
let source = null;
let waiting = null; // HTML that came while a button was held down

function show(html) {
  if (part.querySelector(":active")) {
    waiting = html;
    return;
  }
  waiting = null;
  const focused = part.contains(document.activeElement) ? document.activeElement.id : "";
  const scrolled = window.scrollY;
  const made = new DOMParser().parseFromString(html, "text/html");
  addLocalTimes(made);
  part.replaceChildren(...made.body.childNodes);
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  window.scrollTo(window.scrollX, scrolled);
}

function say(text) {
  if (pulse.textContent !== text) pulse.textContent = text;
}

function follow() {
  source = new EventSource(part.dataset.live);
  source.addEventListener("part", (event) => {
    show(event.data);
    say("Live");
  });
  source.addEventListener("problem", (event) => say(`Not live: ${event.data}`));
  source.addEventListener("error", () => say("Not live: the console does not answer"));
  source.addEventListener("open", () => say("Live"));
  pause.textContent = "Pause";
}

function rest() {
  source.close();
  source = null;
  say("Paused");
  pause.textContent = "Continue";
}

if (part && pause) {
  pause.hidden = false;
  pause.addEventListener("click", () => (source ? rest() : follow()));
  document.addEventListener("pointerup", () => setTimeout(() => waiting !== null && show(waiting), 100));
  document.addEventListener("visibilitychange", () => {
    // a page that no one sees asks for nothing
    if (document.hidden && source) {
      source.close();
      source = null;
      part.dataset.hidden = "1";
    } else if (!document.hidden && part.dataset.hidden) {
      delete part.dataset.hidden;
      follow();
    }
  });
  window.addEventListener("pagehide", () => source?.close());
  follow();
}

// ---- forms ----
for (const form of document.querySelectorAll("form[data-once]")) {
  form.addEventListener("submit", (event) => {
    if (form.dataset.sent) return event.preventDefault();
    form.dataset.sent = "1";
    const button = form.querySelector("button");
    button.textContent = form.dataset.once;
    button.setAttribute("aria-disabled", "true");
  });
}

// What is typed or selected chooses its radio button.
for (const what of ["project", "logstore"]) {
  for (const [field, how] of [[what, "select"], [`new_${what}`, "create"]]) {
    document.getElementById(field)?.addEventListener("input", () => {
      document.getElementById(`${what}-${how}`).checked = true;
    });
  }
}
for (const [field, when] of [["at", "then"], ["from", "span"], ["until", "span"]]) {
  document.getElementById(field)?.addEventListener("input", () => {
    document.getElementById(when).checked = true;
  });
}

// Another session log has another form; another project other Logstores.
document.querySelector("select[data-reload]")?.addEventListener("change", (event) => {
  location.search = new URLSearchParams({ name: event.target.value });
});
document.querySelector("form select#project")?.addEventListener("change", async (event) => {
  const select = document.getElementById("logstore");
  if (!select) return;
  const name = document.getElementById("name").value;
  const answer = await fetch(`logstores?${new URLSearchParams({ name, project: event.target.value })}`);
  const made = new DOMParser().parseFromString(`<select>${answer.ok ? await answer.text() : ""}</select>`, "text/html");
  select.replaceChildren(...made.querySelectorAll("option"));
  document.getElementById(select.options.length ? "logstore-select" : "logstore-create").checked = true;
});

addLocalTimes(document);
