// The page: map, panel and keys. Data come from local scripts that call GALLERY.set, .names and .lists; names of files are
// only ever text, never markup.
"use strict";

const el = (id) => document.getElementById(id);
const NOBODY = 0xffffffff;
const THUMBNAILS_IN_VIEW = 250; // more of them would hide each other
const SHOWN = 120; // images that the panel shows at once
const still = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");

let set, places, index, points;
let view = { x: 0.5, y: 0.5, scale: 1 }; // the map's centre, and CSS pixels per unit
let cursor = -1, chosenClass = -1, box = null, isQueued = false, moving = 0;
const several = new Set();
const shards = { names: new Map(), lists: new Map() };

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

// ------------------------------------------------------------------------------------------------ data, part by part

const GALLERY = {
  set(given) {
    set = given;
    start();
  },
  names(shard, names) {
    shards.names.get(shard).take(names);
  },
  lists(shard, lists) {
    for (const of of Object.values(lists)) {
      of.ids = new Uint32Array(bytes(of.ids).buffer);
      of.cosines = of.cosines && new Int16Array(bytes(of.cosines).buffer);
    }
    shards.lists.get(shard).take(lists);
  },
};

// A part of the data, loaded by a script element the first time: pages from the disk may not fetch() files.
function part(kind, image) {
  const shard = Math.floor(image / set.shard);
  if (!shards[kind].has(shard)) {
    const entry = {};
    entry.promise = new Promise((resolve) => { entry.take = resolve; });
    shards[kind].set(shard, entry);
    const script = document.createElement("script");
    script.src = `data/${kind}-${String(shard).padStart(5, "0")}.js`;
    script.onload = () => script.remove();
    document.head.append(script);
  }
  return shards[kind].get(shard).promise;
}

async function nameOf(image) {
  return (await part("names", image))[image % set.shard];
}

async function listsOf(image) {
  const row = image % set.shard, found = {};
  for (const [key, { k, ids, cosines }] of Object.entries(await part("lists", image))) {
    found[key] = [];
    for (let at = row * k; at < (row + 1) * k; at++) {
      if (ids[at] !== NOBODY) found[key].push({ image: ids[at], cosine: cosines ? cosines[at] / 32767 : null });
    }
  }
  return found;
}

// ------------------------------------------------------------------------------------------------------- thumbnails

const atlases = new Map(); // the last few pictures of many thumbnails, for the map

function cellOf(image) {
  const { columns, rows } = set.thumbnail, cell = image % (columns * rows);
  return { atlas: Math.floor(image / (columns * rows)), column: cell % columns, row: Math.floor(cell / columns) };
}

const fileOf = (atlas) => `sprites/${String(atlas).padStart(5, "0")}.jpg`;

function atlasOf(number) {
  let atlas = atlases.get(number);
  atlases.delete(number);
  if (!atlas) {
    atlas = new Image();
    atlas.onload = redraw;
    atlas.src = fileOf(number);
  }
  atlases.set(number, atlas);
  if (atlases.size > 24) atlases.delete(atlases.keys().next().value);
  return atlas;
}

function sprite(image, zoom = 1) {
  const { size, columns, rows } = set.thumbnail, { atlas, column, row } = cellOf(image), side = size * zoom;
  const box = document.createElement("span");
  box.className = "sprite";
  box.style.width = box.style.height = `${side}px`;
  box.style.backgroundImage = `url("${fileOf(atlas)}")`;
  box.style.backgroundSize = `${columns * side}px ${rows * side}px`;
  box.style.backgroundPosition = `${-column * side}px ${-row * side}px`;
  return box;
}

function button(image, detail) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "thumb";
  made.dataset.image = image;
  made.append(sprite(image, Math.min(1, 64 / set.thumbnail.size)));
  if (detail) made.append(detail);
  made.setAttribute("aria-label", `image ${image + 1} ${detail}`);
  nameOf(image).then((name) => {
    made.title = name;
    made.setAttribute("aria-label", `${name} ${detail}`);
  });
  made.onclick = () => show(image, true);
  return made;
}

// ------------------------------------------------------------------------------------------------------------ the map

const map = el("map");

function spans() { // of the view, in units of the map
  return { width: map.clientWidth / view.scale, height: map.clientHeight / view.scale };
}

function wholeView() {
  view = { x: 0.5, y: 0.5, scale: Math.min(map.clientWidth, map.clientHeight) || 1 };
}

function placeAt(x, y) {
  const { width, height } = spans();
  return [view.x + (x / map.clientWidth - 0.5) * width, view.y + (y / map.clientHeight - 0.5) * height];
}

function pixelOf(image) {
  return [0, 1].map((axis) => {
    const length = axis ? map.clientHeight : map.clientWidth;
    return (places[2 * image + axis] - (axis ? view.y : view.x)) * view.scale + length / 2;
  });
}

function pointSize() {
  const crowd = Math.sqrt((map.clientWidth * map.clientHeight) / set.images);
  return Math.min(18, Math.max(2, 0.55 * crowd * Math.sqrt(view.scale / map.clientHeight)));
}

function redraw() {
  if (!isQueued) requestAnimationFrame(draw);
  isQueued = true;
}

function draw() {
  isQueued = false;
  const ratio = Math.min(2, devicePixelRatio || 1);
  for (const canvas of [el("points"), el("over")]) {
    const width = Math.max(1, Math.round(map.clientWidth * ratio)), height = Math.max(1, Math.round(map.clientHeight * ratio));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  }
  points.draw({ x: view.x, y: view.y, ...spans() }, pointSize() * ratio, chosenClass);
  drawOver(el("over").getContext("2d"), ratio);
}

function drawOver(context, ratio) {
  const style = getComputedStyle(document.documentElement), accent = style.getPropertyValue("--accent");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, map.clientWidth, map.clientHeight);
  const { width, height } = spans(), { size } = set.thumbnail;
  const inView = index.within(view.x - width / 2, view.y - height / 2, view.x + width / 2, view.y + height / 2, THUMBNAILS_IN_VIEW + 1);
  if (inView.length <= THUMBNAILS_IN_VIEW) {
    const side = Math.min(size, Math.max(18, 0.8 * Math.sqrt((map.clientWidth * map.clientHeight) / (inView.length + 1))));
    for (const image of inView) {
      if (chosenClass >= 0 && set.labels[image] !== chosenClass) continue;
      const { atlas, column, row } = cellOf(image), picture = atlasOf(atlas), [x, y] = pixelOf(image);
      if (!picture.complete || !picture.naturalWidth) continue;
      context.drawImage(picture, column * size, row * size, size, size, x - side / 2, y - side / 2, side, side);
    }
  }
  context.strokeStyle = accent;
  context.lineWidth = 2;
  for (const image of several) {
    const [x, y] = pixelOf(image);
    context.strokeRect(x - 4, y - 4, 8, 8);
  }
  if (cursor >= 0) {
    const [x, y] = pixelOf(cursor);
    context.lineWidth = 3;
    context.beginPath();
    context.arc(x, y, 11, 0, 2 * Math.PI);
    context.stroke();
  }
  if (box) context.strokeRect(box.left, box.top, box.width, box.height);
}

// Moves the view so that an image is in it; at once if the reader wants no motion.
function bring(image) {
  const [x, y] = pixelOf(image), margin = 30;
  if (x > margin && y > margin && x < map.clientWidth - margin && y < map.clientHeight - margin) return redraw();
  const from = { ...view }, to = { x: places[2 * image], y: places[2 * image + 1] }, began = performance.now();
  const length = still.matches ? 0 : 180, own = ++moving;
  const step = (now) => {
    if (own !== moving) return;
    const done = length ? Math.min(1, Math.max(0, (now - began) / length)) : 1;
    view.x = from.x + done * (to.x - from.x);
    view.y = from.y + done * (to.y - from.y);
    draw();
    if (done < 1) requestAnimationFrame(step);
  };
  step(began);
}

function zoom(factor, x = map.clientWidth / 2, y = map.clientHeight / 2) {
  const [keptX, keptY] = placeAt(x, y), least = Math.min(map.clientWidth, map.clientHeight) / 2;
  view.scale = Math.min(4e6, Math.max(least, view.scale * factor));
  const [movedX, movedY] = placeAt(x, y);
  view.x += keptX - movedX;
  view.y += keptY - movedY;
  redraw();
}

function pan(x, y) {
  view.x = Math.min(1.5, Math.max(-0.5, view.x - x / view.scale));
  view.y = Math.min(1.5, Math.max(-0.5, view.y - y / view.scale));
  redraw();
}

function nearestTo(x, y, pixels) {
  const radius = pixels / view.scale;
  const squared = (i) => (places[2 * i] - x) ** 2 + (places[2 * i + 1] - y) ** 2;
  const found = index.within(x - radius, y - radius, x + radius, y + radius);
  const best = found.reduce((a, b) => (a < 0 || squared(b) < squared(a) ? b : a), -1);
  return best >= 0 && squared(best) <= radius ** 2 ? best : -1;
}

// The next image from `image` in a direction: near, and more ahead than aside.
function nextTo(image, dx, dy) {
  const x = places[2 * image], y = places[2 * image + 1];
  for (let radius = 0.004; radius < 2; radius *= 2) {
    let best = -1, least = Infinity;
    for (const other of index.within(x - radius, y - radius, x + radius, y + radius)) {
      const ahead = (places[2 * other] - x) * dx + (places[2 * other + 1] - y) * dy;
      const aside = Math.abs((places[2 * other] - x) * dy) + Math.abs((places[2 * other + 1] - y) * dx);
      if (ahead > 0 && aside <= ahead && ahead + aside < Math.min(least, radius)) [best, least] = [other, ahead + aside];
    }
    if (best >= 0) return best;
  }
  return image;
}

// ---------------------------------------------------------------------------------------------------------- the panel

function section(title, hint, content) {
  const heading = document.createElement("h3"), parts = [heading];
  heading.textContent = title;
  if (hint) {
    const line = document.createElement("p");
    line.className = "quiet";
    line.textContent = hint;
    parts.push(line);
  }
  parts.push(content);
  return parts;
}

function row(buttons) {
  const list = document.createElement("ul");
  list.append(...buttons.map((one) => {
    const item = document.createElement("li");
    item.append(one);
    return item;
  }));
  return list;
}

function fill(title, parts, takesFocus) {
  const heading = document.createElement("h2");
  heading.textContent = title;
  heading.tabIndex = -1;
  el("panel").replaceChildren(heading, ...parts.flat());
  el("panel").scrollTop = 0;
  if (takesFocus) heading.focus();
}

function note(text) {
  const line = document.createElement("p");
  line.textContent = text;
  return line;
}

const twins = new Map(); // of near duplicates: image -> its others

async function show(image, takesFocus) {
  point(image);
  const [name, lists] = await Promise.all([nameOf(image), listsOf(image)]);
  if (cursor !== image) return; // another one was chosen meanwhile
  const facts = [`Image ${image + 1} of ${set.images.toLocaleString("en")}`];
  if (set.classes && set.labels[image] < set.classes.length) facts.push(`class ${set.classes[set.labels[image]]}`);
  facts.push(`outlier rank ${set.ranks[image] + 1} (1: least like any other)`);
  const parts = [sprite(image, Math.max(1, 128 / set.thumbnail.size)), note(facts.join(" · "))];
  for (const { key, title, hint } of set.lists) {
    const found = (lists[key] || []).map(({ image: other, cosine }) => button(other, cosine === null ? "" : cosine.toFixed(2)));
    parts.push(section(title, hint, found.length ? row(found) : note("None of them is in this gallery.")));
  }
  if (twins.has(image)) parts.push(section("Near duplicates", set.duplicates.hint, row(twins.get(image).map((other) => button(other, "")))));
  fill(name, parts, takesFocus);
  document.body.dataset.shown = image;
}

function showSeveral(images) {
  several.clear();
  images.forEach((image) => several.add(image));
  redraw();
  const more = images.length > SHOWN ? [note(`The first ${SHOWN} of them:`)] : [];
  fill(`${images.length.toLocaleString("en")} images chosen`, [...more, row(images.slice(0, SHOWN).map((image) => button(image, "")))], false);
}

function showOutliers() {
  const first = [...set.order.slice(0, SHOWN)].map((image) => button(image, ""));
  fill("Outliers", [note(set.outlier_hint), row(first)], true);
}

function showDuplicates() {
  const pairs = set.duplicates.pairs.slice(0, SHOWN).map(([first, second, cosine]) => {
    const pair = document.createElement("span");
    pair.className = "pair";
    pair.append(button(first, ""), button(second, cosine.toFixed(3)));
    return pair;
  });
  const found = pairs.length ? row(pairs) : note("There are none.");
  fill(`Near duplicates: ${set.duplicates.count.toLocaleString("en")} pairs`, [note(set.duplicates.hint), found], true);
}

// Puts the cursor onto an image and says which one it is.
async function point(image) {
  cursor = image;
  bring(image);
  const name = await nameOf(image);
  if (cursor === image) el("said").textContent = set.classes && set.labels[image] < set.classes.length
    ? `${name}, class ${set.classes[set.labels[image]]}` : name;
}

function letGo() {
  cursor = -1;
  several.clear();
  el("said").textContent = "";
  el("panel").replaceChildren(note("Choose an image on the map."));
  delete document.body.dataset.shown;
  redraw();
}

// ------------------------------------------------------------------------------------------------------ mouse and keys

let grip = null;

map.onpointerdown = (event) => {
  const frame = map.getBoundingClientRect();
  grip = { x: event.clientX, y: event.clientY, left: event.clientX - frame.left, top: event.clientY - frame.top, moved: false, shift: event.shiftKey };
  map.setPointerCapture(event.pointerId);
};

map.onpointermove = (event) => {
  if (!grip) return;
  const x = event.clientX - grip.x, y = event.clientY - grip.y;
  if (!grip.moved && Math.hypot(x, y) < 4) return;
  grip.moved = true;
  moving++;
  if (grip.shift) {
    box = { left: Math.min(grip.left, grip.left + x), top: Math.min(grip.top, grip.top + y), width: Math.abs(x), height: Math.abs(y) };
    redraw();
  } else {
    pan(x, y);
    [grip.x, grip.y] = [event.clientX, event.clientY];
  }
};

map.onpointerup = () => {
  if (!grip) return;
  const { left, top, moved } = grip;
  grip = null;
  if (!moved) {
    const found = nearestTo(...placeAt(left, top), 14);
    return found >= 0 ? show(found, false) : letGo();
  }
  if (box) {
    const [x, y] = placeAt(box.left, box.top), [toX, toY] = placeAt(box.left + box.width, box.top + box.height);
    box = null;
    showSeveral(index.within(x, y, toX, toY));
  }
};

map.onpointercancel = () => { grip = box = null; };

map.addEventListener("wheel", (event) => {
  event.preventDefault();
  const frame = map.getBoundingClientRect();
  zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.clientX - frame.left, event.clientY - frame.top);
}, { passive: false });

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

map.onkeydown = (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const arrow = ARROWS[event.key], key = event.key.toLowerCase();
  if (arrow && event.shiftKey) pan(-80 * arrow[0], -80 * arrow[1]);
  else if (arrow) point(cursor < 0 ? Math.max(0, nearestTo(view.x, view.y, 1e5)) : nextTo(cursor, ...arrow));
  else if (key === "n" || key === "p") point((cursor + (key === "n" ? 1 : -1) + set.images) % set.images);
  else if (key === "enter" && cursor >= 0) show(cursor, true);
  else if (key === "+" || key === "=") zoom(1.5);
  else if (key === "-") zoom(1 / 1.5);
  else if (key === "0") { wholeView(); redraw(); }
  else if (key === "escape") letGo();
  else return;
  event.preventDefault();
};

el("panel").onkeydown = (event) => {
  if (event.key === "Escape") map.focus();
};

el("tools").onsubmit = (event) => {
  event.preventDefault();
  const image = Number(el("number").value) - 1;
  if (Number.isInteger(image) && image >= 0 && image < set.images) show(image, true);
  else el("said").textContent = `Images are numbered from 1 to ${set.images}.`;
};

el("outliers").onclick = showOutliers;
el("duplicates").onclick = showDuplicates;
el("closer").onclick = () => zoom(1.5);
el("farther").onclick = () => zoom(1 / 1.5);
el("whole").onclick = () => { wholeView(); redraw(); };
el("colour").onchange = colour;
dark.addEventListener("change", redraw);

// ------------------------------------------------------------------------------------------------------- colours, start

function colour() {
  const isClass = el("colour").value === "class";
  const marks = isClass ? set.labels : Uint32Array.from(set.ranks, (rank) => Math.floor((RAMP.length * (set.images - 1 - rank)) / set.images));
  points.mark(marks, !isClass);
  chosenClass = -1;
  el("legend").replaceChildren(...(isClass && set.classes ? set.classes.map(legendOf) : []));
  redraw();
}

function legendOf(name, label) {
  const item = document.createElement("li"), made = document.createElement("button"), mark = document.createElement("canvas");
  made.type = "button";
  made.setAttribute("aria-pressed", "false");
  drawMark(mark, label);
  made.append(mark, name);
  made.onclick = () => {
    chosenClass = chosenClass === label ? -1 : label;
    for (const other of el("legend").querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === made && chosenClass >= 0));
    redraw();
  };
  item.append(made);
  return item;
}

function start() {
  const raw = new Uint16Array(bytes(set.places).buffer);
  places = Float32Array.from(raw, (value) => value / 65535);
  set.ranks = new Uint32Array(bytes(set.ranks).buffer);
  set.order = new Uint32Array(set.images);
  set.ranks.forEach((rank, image) => { set.order[rank] = image; });
  set.labels = set.labels ? new Uint32Array(bytes(set.labels).buffer) : new Uint32Array(set.images);
  for (const [first, second] of set.duplicates.pairs) {
    for (const [one, other] of [[first, second], [second, first]]) twins.set(one, [...(twins.get(one) || []), other]);
  }
  document.title = el("title").textContent = set.title;
  el("about").textContent = set.about;
  map.setAttribute("aria-label", `Map of ${set.images} images`);
  for (const [value, name] of [...(set.classes ? [["class", "class"]] : []), ["rank", "outlier rank"]]) el("colour").add(new Option(name, value));
  index = new Places(places);
  points = makePoints(el("points"), places);
  wholeView();
  letGo();
  colour();
  new ResizeObserver(redraw).observe(map);
  if (location.hash === "#measure") measure();
}

// For the benchmark: the first picture, and others while the map is moved, each until it is there.
function measure() {
  const timed = (action) => {
    const began = performance.now();
    action();
    draw();
    points.finish();
    return performance.now() - began;
  };
  draw();
  points.finish();
  const first = performance.now(), frames = [];
  for (let frame = 0; frame < 60; frame++) frames.push(timed(() => pan(frame % 20 < 10 ? 12 : -12, 3)));
  view.scale *= 8;
  const near = [];
  for (let frame = 0; frame < 30; frame++) near.push(timed(() => pan(9, frame % 2)));
  const shown = document.createElement("pre");
  shown.id = "measured";
  shown.textContent = JSON.stringify({ renderer: points.kind, first, frames, near });
  document.body.append(shown);
}
