"use strict";
// Everything that comes over the stream (names, labels, text of tokens) is somebody else's text: it is only ever put
// into the document as textContent, and what is kept of it is bounded by these.
const MOST_TOKENS = 512, MOST_REQUESTS = 8, MOST_LOG = 200, MOST_HISTORY = 121, MOST_LABELS = 65536;
const QUIET = 10000, FIRST_WAIT = 1000, LONGEST_WAIT = 30000;

const $ = (id) => document.getElementById(id);
const make = (name, className, text) => {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
};
const number = (value, digits = 3) => value == null ? "–"
  : value === 0 ? "0"
  : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en")
  : String(Number(value.toPrecision(digits)));
const percent = (value) => value == null ? "–"
  : value === 0 ? "0 %" : value < 0.0001 ? "<0.01 %" : number(value * 100) + " %";
const seconds = (value) => value == null ? "–"
  : value < 1e-3 ? number(value * 1e6) + " µs" : value < 1 ? number(value * 1e3) + " ms" : number(value) + " s";
const bytes = (value) => value >= 1 << 30 ? number(value / (1 << 30)) + " GiB" : number(value / (1 << 20)) + " MiB";
const span = (value) => value < 120 ? Math.round(value) + " s"
  : value < 7200 ? Math.round(value / 60) + " min" : number(value / 3600) + " h";

// Control characters, and those that reorder or hide text, are shown as what they are.
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\ufff9-\ufffb]/g;
const visible = (text) => text.replace(HIDDEN, (c) => c === "\n" ? "⏎" : c === "\t" ? "⇥"
  : "\\u{" + c.codePointAt(0).toString(16) + "}");

// What is known of each site, by name; those that the monitor has no longer are forgotten.
const sites = new Map();
let current = null, paused = false, token = null, lastId = null, snapshot = null;
