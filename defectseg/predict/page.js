"use strict";
const { about, rows } = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const STATUSES = ["clean", "blank", "defect"]; // as page.py numbers them
const BATCH = 60; // images that are added to the gallery at once

// An element. Text is set as text, so no name can become HTML.
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
const sum = (numbers) => numbers.reduce((total, one) => total + one, 0);
const percent = (part, whole) => `${((100 * part) / whole).toFixed(1).replace(".0", "")} %`;

const unit = about.mm2_per_px ? "mm²" : "px";
const area = (px) => {
  const size = about.mm2_per_px ? px * about.mm2_per_px : px;
  return `${size.toLocaleString("en", { maximumSignificantDigits: Math.max(3, Math.trunc(size).toString().length) })} ${unit}`;
};
const className = Object.fromEntries(about.classes.map(([id, name]) => [id, name]));
const images = rows.map(([number, name, overlay, status, height, width, sheetScore, topScore, areaPx, largestPx, firstRegion, found, unlike, differs, group, notes]) => {
  const path = overlay === 1 ? `overlays/${name.replace(/([^/])\.[^./]+$/, "$1")}.jpg` : overlay;
  const defects = new Map();
  for (let at = 0; at < found.length; at += 2) defects.set(found[at], found[at + 1]);
  return { number, name, path, status: STATUSES[status], height, width, sheetScore, topScore, areaPx, largestPx, firstRegion, defects, unlike, differs, group, notes };
});
const address = (path) => path.split("/").map(encodeURIComponent).join("/");
const defectsOf = (image) => [...image.defects].map(([id, many]) => (many ? `${many} × ${className[id]}` : className[id])).join(", ");

// What stands above the images

const total = sum(Object.values(about.statuses));
const { defect, blank, unreadable } = about.statuses;
const folder = decodeURIComponent(location.pathname).split("/").at(-2);
if (folder) document.title = document.querySelector("h1").textContent = `Results: ${folder}`;
$("about").textContent = `${count(total, "image")} · written ${new Date(document.lastModified).toLocaleString()}`;

function showVerdict() {
  let words = `${defect.toLocaleString("en")} of ${count(total, "image")} ${defect === 1 ? "has" : "have"} a defect.`;
  if (!total) words = "There is no image in this folder.";
  else if (unreadable === total) words = `No image could be read.`;
  else if (!defect) words = `No defect found in ${count(total - unreadable, "image")}.`;
  const more = [];
  if (unreadable && unreadable < total) more.push(`${count(unreadable, "image")} could not be read.`);
  if (blank) more.push(`${count(blank, "image")} ${blank === 1 ? "is" : "are"} blank, with nothing to see: is the lamp on, the bit depth right?`);
  if (about.rules) more.push(`${count(about.rules.images, "image")} met the rule: ${about.rules.rules}.`);
  $("verdict").classList.add(defect || (total && unreadable === total) ? "bad" : unreadable || blank || !total ? "unsure" : "good");
  $("verdict").append(make("b", { textContent: words }), ...more.map((textContent) => make("p", { textContent })));
  const notes = [...about.warnings];
  if (about.unlike.images) notes.push(`${count(about.unlike.images, "image")} ${about.unlike.images === 1 ? "looks" : "look"} unlike those that the model was trained on: ${about.unlike.differs}.`);
  $("warnings").hidden = !notes.length;
  $("warnings").querySelector("ul").append(...notes.map((textContent) => make("li", { textContent })));
}

function showUnreadable() {
  $("unreadable").hidden = !unreadable;
  // A reason begins with the path of the file, which ends like its name.
  const lines = about.unreadable.map(([name, reason]) => make("tr", {}, make("td", { className: "id", textContent: name }), make("td", { textContent: reason.split(`${name}: `).at(-1) })));
  $("unreadable").querySelector("tbody").append(...lines);
  const these = lines.length < unreadable ? `The first ${lines.length} of ${unreadable.toLocaleString("en")}; all` : "All";
  $("unreadable").querySelector("p").append(`${these} are in `, make("a", { href: "errors.csv", textContent: "errors.csv" }), ".");
}

function showClasses() {
  const most = Math.max(1, ...about.classes.map((one) => one[about.has_regions ? 3 : 2]));
  for (const [id, name, withIt, many] of about.classes) {
    const bar = make("i");
    bar.style.width = `${(100 * (about.has_regions ? many : withIt)) / most}%`;
    const numbers = [withIt, about.has_regions ? many : "–"].map((one) => make("td", { className: "n", textContent: one.toLocaleString("en") }));
    $("classes").append(make("tr", {}, make("th", { scope: "row", textContent: name }), ...numbers, make("td", {}, bar)));
  }
}

function showParts() {
  const most = Math.max(...about.parts.map(([, many, bad]) => bad / many), 0);
  for (const [index, [, many, bad]] of about.parts.entries()) {
    const bar = make("i");
    bar.style.height = `${most ? (100 * bad) / many / most : 0}%`;
    const part = make("div", { title: `Images ${partNames[index]}: ${bad} of ${many} with a defect` }, bar);
    part.addEventListener("click", () => {
      $("part").value = $("part").value === `=${partNames[index]}` ? "" : `=${partNames[index]}`;
      $("part").dispatchEvent(new Event("change"));
    });
    $("parts").append(part);
  }
  $("parts-note").textContent = most ? `Share of images with a defect. The highest bar is ${percent(most, 1)}; click one for its images.` : "No image has a defect.";
  $("parts").hidden = $("first").parentElement.hidden = !most;
  const ordered = [...images].sort((one, other) => one.number - other.number);
  $("first").textContent = ordered.length === total ? ordered[0].name : "first image";
  $("last").textContent = ordered.length === total ? ordered.at(-1).name : "last image";
}

// Which images are shown

const bounds = about.mm2_per_px ? [10, 100, 1000] : [100, 1000, 10000];
const sizes = [`below ${bounds[0]} ${unit}`, ...[0, 1].map((at) => `${bounds[at].toLocaleString("en")} to ${bounds[at + 1].toLocaleString("en")} ${unit}`), `from ${bounds[2].toLocaleString("en")} ${unit}`];
const sizeOf = (image) => {
  if (image.status !== "defect") return [];
  const size = (about.has_regions ? image.largestPx : image.areaPx) * (about.mm2_per_px || 1);
  return [sizes[bounds.filter((bound) => size >= bound).length]];
};
const partNames = about.parts.map(([first, many]) => [...new Set([first + 1, first + many])].map((one) => one.toLocaleString("en")).join(" to "));
const partOf = (image) => partNames[about.parts.findLastIndex(([first]) => first <= image.number)];
const FILTERS = {
  status: { label: "Status", values: ["defect", "clean", "blank"], of: (image) => [image.status] },
  class: { label: "Class", values: Object.values(className), of: (image) => [...image.defects.keys()].map((id) => className[id]) },
  size: { label: about.has_regions ? "Largest defect" : "Defect area", values: sizes, of: sizeOf },
  group: { label: "Group", values: [...new Set(images.map((image) => image.group))].filter((group) => group !== null).sort(), of: (image) => [image.group] },
  unlike: { label: "Training images", values: ["unlike these", "like these"], of: (image) => [image.differs ? "unlike these" : "like these"] },
  part: { label: "Files", values: partNames, of: (image) => [image.part] },
};
const ORDERS = {
  "worst first": (one, other) => one.rank - other.rank,
  "largest defect first": (one, other) => other.largestPx - one.largestPx || other.areaPx - one.areaPx || one.rank - other.rank,
  "in the order of files": (one, other) => one.number - other.number,
  "most unlike first": (one, other) => other.unlike - one.unlike || one.rank - other.rank,
};
const chosen = { text: "", order: "worst first" };
let shown = []; // the images that the filters leave
let placed = 0; // how many of them are in the gallery

function showFilters() {
  images.forEach((image, rank) => Object.assign(image, { rank, part: partOf(image) }));
  for (const [name, filter] of Object.entries(FILTERS)) {
    const many = new Map();
    for (const image of images) for (const value of filter.of(image)) many.set(value, (many.get(value) || 0) + 1);
    const values = filter.values.filter((value) => many.has(value));
    if (values.length < 2 && !(values.length && many.get(values[0]) < images.length)) continue;
    const options = values.map((value) => make("option", { value: `=${value}`, textContent: `${value || "(none)"} (${many.get(value).toLocaleString("en")})` }));
    addFilter(filter.label, make("select", { id: name }, make("option", { value: "", textContent: "all" }), ...options), "change", (value) => { chosen[name] = value; });
  }
  addFilter("Name contains", make("input", { type: "search", id: "text" }), "input", (value) => { chosen.text = value.toLowerCase(); });
  const orders = Object.keys(ORDERS).filter((order) => !order.includes("unlike") || images.some((image) => image.unlike !== null));
  addFilter("Order", make("select", { id: "order" }, ...orders.map((order) => make("option", { textContent: order }))), "change", (value) => { chosen.order = value; });
  $("filters").append(make("button", { type: "reset", textContent: "Show all" }));
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("reset", () => {
    for (const name of Object.keys(FILTERS)) chosen[name] = "";
    Object.assign(chosen, { text: "", order: "worst first" });
    select();
  });
}

function addFilter(label, control, event, choose) {
  control.addEventListener(event, () => { choose(control.value); select(); });
  $("filters").append(make("label", {}, label, control));
}

function select() {
  const wanted = Object.entries(FILTERS).filter(([name]) => chosen[name]).map(([name, { of }]) => (image) => of(image).includes(chosen[name].slice(1)));
  if (chosen.text) wanted.push((image) => image.name.toLowerCase().includes(chosen.text));
  shown = images.filter((image) => wanted.every((fits) => fits(image))).sort(ORDERS[chosen.order]);
  $("shown").textContent = `${shown.length === images.length ? "" : `${shown.length.toLocaleString("en")} of `}${count(images.length, "image")}`;
  [...$("parts").children].forEach((part, index) => part.classList.toggle("chosen", chosen.part === `=${partNames[index]}`));
  $("gallery").replaceChildren();
  placed = 0;
  place(BATCH);
}

// The gallery

function pictureOf(image, lazily) {
  const picture = make("img", { alt: `Overlay of ${image.name}`, width: image.width, height: image.height, decoding: "async" });
  if (lazily) picture.loading = "lazy"; // before src, which would load it at once
  picture.addEventListener("error", () => picture.replaceWith(make("div", { className: "gone", textContent: `${image.path} is not there` })));
  picture.src = address(image.path);
  return picture;
}

function cardOf(image, index) {
  const name = make("button", { type: "button", className: "id", textContent: image.name });
  const found = image.status === "defect" ? ` ${defectsOf(image)} · ${area(image.areaPx)}` : "";
  const card = make("li", {}, make("div", { className: "text" }, name,
    make("div", {}, make("span", { className: `tag ${image.status}`, textContent: image.status }), `${found}${image.sheetScore === null ? "" : ` · score ${image.sheetScore.toFixed(2)}`}`),
    ...[image.differs && `Unlike the training images: ${image.differs}`, image.notes].filter(Boolean).map((textContent) => make("div", { className: "soft", textContent }))));
  if (image.path) {
    const picture = pictureOf(image, true);
    if (Math.abs(image.width / image.height / frameAspect - 1) < 0.02) picture.style.objectFit = "cover"; // cuts the legend only
    const frame = make("div", { className: "frame" }, picture);
    frame.addEventListener("click", () => open(index));
    card.prepend(frame);
  }
  name.addEventListener("click", () => open(index));
  return card;
}

function place(many) {
  const cards = shown.slice(placed, placed + many).map((image, at) => cardOf(image, placed + at));
  $("gallery").append(...cards);
  placed += cards.length;
  $("more").hidden = placed === shown.length;
}

// Frames as high as most pictures, so that nothing moves while they load: wide pictures get the whole width.
let frameAspect = 1;
function layOut() {
  const aspects = images.filter((image) => image.path).map((image) => image.width / image.height).sort((one, other) => one - other);
  frameAspect = Math.min(8, Math.max(0.75, aspects[aspects.length >> 1] || 1));
  $("gallery").style.setProperty("--frame", String(frameAspect));
  const width = Math.round(Math.min(640, 190 + 80 * frameAspect));
  $("gallery").style.setProperty("--card-width", `${width}px`);
  $("gallery").style.setProperty("--card-height", `${Math.round(70 + (aspects.length ? width / frameAspect : 0))}px`);
}

// One image, large

let opened = -1;

function open(index) {
  if (index < 0 || index >= shown.length) return;
  if (index >= placed) place(index - placed + BATCH);
  opened = index;
  const image = shown[index];
  $("large-name").textContent = image.name;
  const link = image.path && make("a", { href: address(image.path), target: "_blank", title: "Open the picture" }, pictureOf(image, false));
  $("picture").replaceChildren(...(link ? [link] : []));
  $("details").replaceChildren(...detailsOf(image).flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", {}, value)]));
  $("back").disabled = index === 0;
  $("next").disabled = index === shown.length - 1;
  if (!$("large").open) $("large").showModal();
  if (document.activeElement.disabled || !$("large").contains(document.activeElement)) $("large-name").focus();
  for (const near of [shown[index + 1], shown[index - 1]]) if (near && near.path) new Image().src = address(near.path);
}

function detailsOf(image) {
  const line = (file, first, last) => make("span", {}, `${last > first ? `lines ${first} to ${last}` : `line ${first}`} of `, make("a", { href: file, textContent: file }));
  const regions = sum([...image.defects.values()]);
  return [
    ["Image", `${(opened + 1).toLocaleString("en")} of ${shown.length.toLocaleString("en")} shown`],
    ["Status", make("span", { className: `tag ${image.status}`, textContent: image.status })],
    ["Defects", image.status === "defect" && `${defectsOf(image)}; ${area(image.areaPx)} (${percent(image.areaPx, image.width * image.height)})`],
    ["Largest defect", image.largestPx > 0 && area(image.largestPx)],
    ["Scores", [["sheet", image.sheetScore], ["best region", image.topScore]].filter(([, score]) => score !== null).map(([what, score]) => `${what} ${score.toFixed(4)}`).join(", ")],
    ["Group", image.group],
    ["Unlike", image.differs && `${image.differs} (rank ${image.unlike})`],
    ["Notes", image.notes],
    ["Size", `${image.width} × ${image.height} px`],
    ["Row", line("images.csv", image.number + 2)],
    ["Regions", regions > 0 && line("regions.csv", image.firstRegion + 2, image.firstRegion + 1 + regions)],
  ].filter(([, value]) => value);
}

function handleKey(event) {
  const isOpen = $("large").open;
  if (event.ctrlKey || event.metaKey || event.altKey || ["INPUT", "SELECT"].includes(event.target.tagName)) return;
  const focused = [...$("gallery").children].findIndex((card) => card.contains(document.activeElement));
  const at = isOpen ? opened : focused;
  const step = { j: 1, k: -1, ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step === undefined) return;
  event.preventDefault();
  open(isOpen ? at + step : Math.max(0, at));
}

function showTables() {
  const WHAT = { "predictions.csv": "run-lengths of each class", "images.csv": "a row for each image", "regions.csv": "a row for each defect", "errors.csv": "images that could not be read", "by_group.csv": "a row for each group", "run.json": "the model, its settings and the counts" };
  $("files").append(...about.files.map((file) => make("li", {}, make("a", { href: file, textContent: file }), `: ${WHAT[file]}`)));
  const facts = Object.entries(about.facts).filter(([, value]) => value);
  $("facts").append(...facts.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })]));
}

showVerdict();
showUnreadable();
showTables();
if (images.length) {
  $("results").hidden = false;
  const readable = total - unreadable;
  $("held").hidden = images.length === readable;
  $("held").append(`${images.length.toLocaleString("en")} of ${count(readable, "image")}, the worst first; all are in `, make("a", { href: "images.csv", textContent: "images.csv" }), ".");
  showClasses();
  showParts();
  showFilters();
  layOut();
  select();
  $("more").firstChild.addEventListener("click", () => place(BATCH));
  const observer = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    place(BATCH);
    observer.unobserve($("more")); // and again, so that it is told if this was not enough
    observer.observe($("more"));
  }, { rootMargin: "800px" });
  observer.observe($("more"));
  $("back").addEventListener("click", () => open(opened - 1));
  $("next").addEventListener("click", () => open(opened + 1));
  $("close").addEventListener("click", () => $("large").close());
  $("large").addEventListener("close", () => { const card = $("gallery").children[opened]; if (card) card.querySelector("button").focus(); });
  document.addEventListener("keydown", handleKey);
}
