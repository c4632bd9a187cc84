// The attention page. All that it shows comes from the JSON in the page; nothing is ever fetched.
//
// DATA.stacks[k]: {name, title, rows, columns, same, layers, heads}; row tokens attend to column tokens; `same` if they are one text.
// DATA.moments[m]: {step, loss, codes}; the weights of all stacks behind each other, (layers, heads, rows, columns), one byte
//   each, code = 255 * sqrt(weight), deflated, in base64.
// DATA.detail: null or {width, then, scales, codes}; queries and keys of the last moment as 16-bit integers, likewise.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const WEIGHT = Float32Array.from({ length: 256 }, (_, code) => (code / 255) ** 2);
const HEAD_COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c00"];
const ALL = -1; // the head that stands for all of them
const FAINTEST = 0.05; // a lighter line is drawn for a chosen token only
const LAST = DATA.moments.length - 1;

const $ = (id) => document.getElementById(id);
const FIRST = Math.max(0, DATA.stacks.findIndex((stack) => !stack.same)); // of two sentences, how one looks at the other
const state = { stack: FIRST, layer: 0, head: 0, off: new Set(), time: LAST, row: null, column: null, pinned: false }; // `off`: of all heads, those left out
let shown = null; // what is on the screen: {stack, weights} of the chosen layer and head, and `codes` of the whole moment
let theme = null; // colours as the style sheet has them: see readTheme
let requested = 0;

// ---------------------------------------------------------------------------------------------------------------- data

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

const inflated = new Map();
function codesOf(moment) {
  if (!inflated.has(moment)) inflated.set(moment, inflate(DATA.moments[moment].codes).then((buffer) => new Uint8Array(buffer)));
  return inflated.get(moment);
}

const size = (stack) => stack.rows.length * stack.columns.length;

/** Where a head's weights begin among the codes of a moment. */
function start(k, layer, head) {
  const before = DATA.stacks.slice(0, k).reduce((sum, stack) => sum + stack.layers * stack.heads * size(stack), 0);
  return before + (layer * DATA.stacks[k].heads + head) * size(DATA.stacks[k]);
}

/** The heads that are shown: the chosen one, or all but those left out. */
function shownHeads() {
  if (state.head !== ALL) return [state.head];
  return [...Array(DATA.stacks[state.stack].heads).keys()].filter((head) => !state.off.has(head));
}

/** Weights (rows * columns) of one head, or the mean of several of the layer. */
function weightsOf(codes, k, layer, heads) {
  const weights = new Float32Array(size(DATA.stacks[k]));
  for (const each of heads) {
    const first = start(k, layer, each);
    for (let i = 0; i < weights.length; i++) weights[i] += WEIGHT[codes[first + i]] / heads.length;
  }
  return weights;
}

/** Means over the rows that attend: entropy (nats), distance (tokens) to what is attended to, weight on the first token and on
 * the own one. */
function statistics(weights, T, S) {
  let count = 0, entropy = 0, distance = 0, first = 0, self = 0;
  for (let row = 0; row < T; row++) {
    let total = 0, own = 0, far = 0;
    for (let column = 0; column < S; column++) {
      const weight = weights[row * S + column];
      if (weight === 0) continue;
      total += weight;
      own -= weight * Math.log(weight);
      far += weight * Math.abs(row - column);
    }
    if (total === 0) continue;
    count++;
    entropy += own / total + Math.log(total); // of the weights divided by their sum, which rounding moves off 1
    distance += far / total;
    first += weights[row * S] / total;
    if (row < S) self += weights[row * S + row] / total;
  }
  count = count || 1;
  return { entropy: entropy / count, distance: distance / count, first: first / count, self: self / count };
}

/** [layer, head] of the lowest mean entropy, of those that do not give most of their weight to the own and the first token. */
function sharpest(codes, k) {
  const { rows, columns, same, layers, heads } = DATA.stacks[k];
  let found = [0, 0], least = Infinity;
  for (let layer = 0; layer < layers; layer++) {
    for (let head = 0; head < heads; head++) {
      const { entropy, first, self } = statistics(weightsOf(codes, k, layer, [head]), rows.length, columns.length);
      if (first + (same ? self : 0) < 0.5 && entropy < least) [found, least] = [[layer, head], entropy];
    }
  }
  return found;
}

// ------------------------------------------------------------------------------------------------------------- drawing

function readTheme() {
  const style = getComputedStyle(document.documentElement);
  theme = {};
  for (const name of ["paper", "ink", "faint", "line", "low", "middle", "high", "positive", "negative", "chosen"]) {
    theme[name] = style.getPropertyValue(`--${name}`).trim();
  }
  const stops = ["low", "middle", "high"].map((name) => [1, 3, 5].map((at) => parseInt(theme[name].slice(at, at + 2), 16)));
  theme.scale = Array.from({ length: 256 }, (_, code) => {
    const place = code / 127.5, from = Math.min(1, Math.floor(place)), part = place - from;
    return stops[from].map((value, channel) => Math.round(value + (stops[from + 1][channel] - value) * part));
  });
}

/** The colour of a weight, as [red, green, blue]. */
const colorOf = (weight) => theme.scale[Math.min(255, Math.round(255 * weight ** Number($("scale").value)))];

/** A canvas of that size in CSS pixels, sharp on the screen, and its empty context. */
function prepare(canvas, width, height) {
  const ratio = Math.min(window.devicePixelRatio || 1, 16000 / height);
  canvas.width = Math.ceil(width * ratio);
  canvas.height = Math.ceil(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return context;
}

/** A picture with one pixel per weight; 0 stays clear. */
function pixels(weights, T, S) {
  const canvas = new OffscreenCanvas(S, T), context = canvas.getContext("2d"), image = context.createImageData(S, T);
  const packed = new Uint32Array(image.data.buffer);
  const table = Uint32Array.from(WEIGHT, (weight) => {
    const [red, green, blue] = colorOf(weight);
    return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0; // in the order of a canvas on every machine in use
  });
  for (let i = 0; i < weights.length; i++) {
    if (weights[i] > 0) packed[i] = table[Math.min(255, Math.round(255 * Math.sqrt(weights[i])))];
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

const FONT = 'ui-monospace, "DejaVu Sans Mono", monospace';
const AXIS = 15; // room for the name of an axis
const matrix = { margin: 0, cell: 1, image: null }; // how the matrix lies on its canvas

function layOutMatrix() {
  const { rows, columns } = shown.stack, context = $("matrix").getContext("2d");
  context.font = `12px ${FONT}`;
  const longest = Math.max(...[...rows, ...columns].map((label) => context.measureText(label).width));
  matrix.margin = AXIS + Math.ceil(Math.min(90, Math.max(18, longest + 5)));
  const room = $("matrix-figure").clientWidth - matrix.margin - 1;
  matrix.cell = Math.min(44, room / columns.length, Math.max(620, 9 * rows.length) / rows.length);
  matrix.image = pixels(shown.weights, rows.length, columns.length);
  const colors = Array.from({ length: 65 }, (_, index) => `rgb(${colorOf(index / 64)})`);
  $("bar").style.background = `linear-gradient(to right, transparent 2%, ${colors[0]} 2%, ${colors.slice(1)})`; // 0 is clear
}

function drawMatrix() {
  const { rows, columns } = shown.stack, { margin, cell, image } = matrix;
  const width = cell * columns.length, height = cell * rows.length;
  const context = prepare($("matrix"), margin + width + 1, margin + height + 1);
  context.imageSmoothingEnabled = false;
  context.drawImage(image, margin, margin, width, height);
  context.strokeStyle = theme.line;
  context.strokeRect(margin - 0.5, margin - 0.5, width + 1, height + 1);
  context.font = `12px ${FONT}`;
  context.textBaseline = "middle";
  context.fillStyle = theme.faint;
  context.fillText("attended to", margin, AXIS / 2, width);
  context.save();
  context.translate(AXIS / 2, margin);
  context.rotate(-Math.PI / 2);
  context.textAlign = "right";
  context.fillText("attending", 0, 0, height);
  context.restore();
  const every = cell >= 8; // room for a label at every row and column; else at the chosen ones only
  context.font = `${every ? Math.min(15, cell - 1) : 12}px ${FONT}`;
  for (let row = 0; row < rows.length; row++) {
    if (!every && row !== state.row) continue;
    context.fillStyle = row === state.row ? theme.chosen : theme.faint;
    context.textAlign = "right";
    context.fillText(rows[row], margin - 4, margin + (row + 0.5) * cell, margin - 4 - AXIS);
  }
  for (let column = 0; column < columns.length; column++) {
    if (!every && column !== state.column) continue;
    context.fillStyle = column === state.column ? theme.chosen : theme.faint;
    context.save();
    context.translate(margin + (column + 0.5) * cell, margin - 4);
    if ([...columns[column]].length > 1) context.rotate(-Math.PI / 2);
    else context.translate(0, -4);
    context.textAlign = [...columns[column]].length > 1 ? "left" : "center";
    context.fillText(columns[column], 0, 0, margin - 4 - AXIS);
    context.restore();
  }
  context.strokeStyle = theme.negative;
  context.lineWidth = 1.5;
  if (state.row !== null) context.strokeRect(margin, margin + state.row * cell, width, cell);
  if (state.column !== null) context.strokeRect(margin + state.column * cell, margin, cell, height);
}

/** Of more heads than there are chosen colours, hues at equal distances. */
function headColor(head) {
  const { heads } = DATA.stacks[state.stack];
  return heads > HEAD_COLORS.length ? `hsl(${Math.round((360 * head) / heads)} 70% 42%)` : HEAD_COLORS[head];
}

const lineHeight = () => (Math.max(shown.stack.rows.length, shown.stack.columns.length) > 200 ? 12 : 17);

function drawLines() {
  const { rows, columns } = shown.stack, step = lineHeight(), S = columns.length, scroll = $("lines-scroll");
  const width = scroll.clientWidth - 4, height = step * Math.max(rows.length, S);
  const context = prepare($("lines"), width, height);
  context.font = `${step - 4}px ${FONT}`;
  context.textBaseline = "middle";
  const longest = Math.max(...[...rows, ...columns].map((label) => context.measureText(label).width));
  const side = Math.ceil(Math.min(0.3 * width, longest)) + 8;
  const place = step * (state.row ?? state.column ?? -1);
  if (place >= 0 && !$("lines").matches(":hover") && Math.abs(place - scroll.scrollTop - scroll.clientHeight / 2) > 0.4 * scroll.clientHeight) {
    scroll.scrollTop = place - scroll.clientHeight / 2; // so that what is chosen can be seen
  }
  const free = state.row === null && state.column === null, faintest = free ? FAINTEST : 0.002;
  $("lines-about").textContent = `attending → attended to, weight\u00a0≥\u00a0${faintest}`;
  const heads = shownHeads();
  for (const [index, head] of heads.entries()) {
    const weights = state.head === ALL ? weightsOf(shown.codes, state.stack, state.layer, [head]) : shown.weights;
    context.strokeStyle = state.head === ALL ? headColor(head) : theme.middle;
    for (let row = 0; row < rows.length; row++) {
      for (let column = 0; column < S; column++) {
        const weight = weights[row * S + column];
        const chosen = free || (state.row === null ? state.column === column : state.row === row);
        if (!chosen || weight < faintest) continue;
        context.globalAlpha = Math.min(1, 0.08 + weight);
        context.lineWidth = 0.5 + (state.head === ALL ? 1.5 : 2.5) * weight;
        const slope = ((column - row) * step) / (width - 2 * side); // two pixels between heads, across the line, so that none is covered
        const lower = (index - (heads.length - 1) / 2) * Math.min(2 * Math.hypot(1, slope), step / heads.length);
        context.beginPath();
        context.moveTo(side, (row + 0.5) * step + lower);
        context.lineTo(width - side, (column + 0.5) * step + lower);
        context.stroke();
      }
    }
  }
  context.globalAlpha = 1;
  for (const [labels, chosen, x, align] of [[rows, state.row, side - 5, "right"], [columns, state.column, width - side + 5, "left"]]) {
    context.textAlign = align;
    labels.forEach((label, index) => {
      context.fillStyle = index === chosen ? theme.chosen : theme.ink;
      context.fillText(label, x, (index + 0.5) * step, side - 5);
    });
  }
}

const THUMBNAIL = 48;

/** Every head as a small picture: each pixel is the largest of the weights that it stands for, so that no line is lost. */
function drawOverview() {
  const { stack, codes } = shown, T = stack.rows.length, S = stack.columns.length;
  const height = Math.min(T, THUMBNAIL), width = Math.min(S, THUMBNAIL);
  const places = Uint32Array.from(stack.columns, (_, column) => Math.floor((column * width) / S));
  for (const button of $("overview").children) {
    const layer = Number(button.dataset.layer), head = Number(button.dataset.head), first = start(state.stack, layer, head);
    const small = new Uint8Array(width * height);
    for (let row = 0; row < T; row++) {
      const line = Math.floor((row * height) / T) * width, from = first + row * S;
      for (let column = 0; column < S; column++) {
        const place = line + places[column];
        if (codes[from + column] > small[place]) small[place] = codes[from + column];
      }
    }
    const canvas = button.firstChild;
    [canvas.width, canvas.height] = [width, height];
    canvas.getContext("2d").drawImage(pixels(Float32Array.from(small, (code) => WEIGHT[code]), height, width), 0, 0);
    button.setAttribute("aria-pressed", String(layer === state.layer && shownHeads().includes(head)));
    button.style.setProperty("--mark", state.head === ALL ? headColor(head) : theme.negative);
  }
  const framed = state.head === ALL ? "; frame: colour of its lines" : "";
  $("overview-about").textContent = `every head: layers down, heads across${framed}`;
}

/** Which tokens the text view shades and by how much: what the chosen row attends to, or who attends to the chosen column. */
function shades() {
  const { rows, columns, same } = shown.stack, S = columns.length;
  const byColumn = same ? $("direction").value === "column" : state.row === null;
  const chosen = byColumn ? state.column : state.row;
  if (chosen === null) return { byColumn, weights: null };
  const weights = (byColumn ? rows : columns).map((_, i) => shown.weights[byColumn ? i * S + chosen : chosen * S + i]);
  return { byColumn, chosen, weights };
}

function drawTexts() {
  const { same } = shown.stack, { byColumn, chosen, weights } = shades();
  for (const strip of document.querySelectorAll(".text div")) {
    const isRows = strip.dataset.side === "row", shaded = same || isRows === byColumn;
    [...strip.children].forEach((token, index) => {
      const weight = weights && shaded ? weights[index] : 0;
      token.style.background = weight > 0.002 ? `rgb(${colorOf(weight)})` : "";
      token.style.color = weight > 0.002 ? (bright(colorOf(weight)) ? "#000" : "#fff") : "";
      const here = same ? index === chosen : index === (isRows ? state.row : state.column);
      token.classList.toggle("chosen", here);
      if (here && !strip.matches(":hover")) strip.scrollTop = token.offsetTop - strip.clientHeight / 2; // where it can be seen
    });
  }
}

/** Whether black letters stand out more than white ones, by WCAG's relative luminance. */
function bright(color) {
  const levels = color.map((part) => part / 255).map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * levels[0] + 0.7152 * levels[1] + 0.0722 * levels[2] > 0.179;
}

/** The largest weights of the chosen token, as a table. */
function drawRanking() {
  const { rows, columns } = shown.stack, { byColumn, chosen, weights } = shades(), body = $("ranking").tBodies[0];
  body.replaceChildren();
  $("ranking-about").textContent = "numbers: choose a token";
  if (!weights) return;
  const [own, others] = byColumn ? [columns, rows] : [rows, columns];
  $("ranking-about").textContent = `${own[chosen]} (${chosen}) ${byColumn ? "is attended to by" : "attends to"}`;
  const order = weights.map((_, index) => index).sort((a, b) => weights[b] - weights[a] || a - b);
  for (const index of order.slice(0, 8).filter((at) => weights[at] > 0)) {
    const row = body.insertRow(), bar = document.createElement("i");
    row.insertCell().textContent = others[index];
    row.insertCell().textContent = `(${index})`;
    row.insertCell().append(bar);
    bar.style.width = `${100 * Math.min(1, weights[index])}%`;
    row.insertCell().textContent = weights[index].toFixed(3);
  }
}

/** One sentence on what is chosen; screen readers hear it. */
function say() {
  const { rows, columns } = shown.stack, { row, column } = state;
  if (row !== null && column !== null) {
    const weight = shown.weights[row * columns.length + column];
    $("said").textContent = `${rows[row]} (${row}) → ${columns[column]} (${column}): weight ${weight.toFixed(3)}`;
  } else if (row !== null) {
    $("said").textContent = `${rows[row]}: position ${row}, counted from 0`;
  } else if (column !== null) {
    $("said").textContent = `${columns[column]}: position ${column}, counted from 0`;
  } else {
    $("said").textContent = "No token is chosen.";
  }
}

let detail = null; // queries and keys of the last moment, once they are inflated

/** Query times key, channel by channel: why the chosen row attends to the chosen column, or to each column, as it does. */
function drawDetail() {
  const { row, column } = state, about = $("detail-about"), canvas = $("detail");
  $("detail-figure").hidden = DATA.detail === null;
  if (DATA.detail === null) return;
  canvas.hidden = true;
  if (row === null || state.head === ALL || state.time !== LAST) {
    about.textContent =
      "Choose a token that attends, of one head at the last step, to see its query times every key, channel by channel; " +
      "or a cell of the matrix for one query and one key.";
    return;
  }
  if (detail === null) {
    inflate(DATA.detail.codes).then((buffer) => { detail = new Int16Array(buffer); drawDetail(); });
    return;
  }
  canvas.hidden = false;
  (column === null ? drawProducts : drawPair)(row, column);
  canvas.setAttribute("aria-label", about.textContent);
}

const MOST_KEYS = 32;

/** One query against every key that it sees: a line of products for each, whose sum over sqrt(K) is the score. */
function drawProducts(row) {
  const { rows, columns } = shown.stack, K = DATA.detail.width, query = vectorOf("query", row);
  const weights = shown.weights.subarray(row * columns.length, (row + 1) * columns.length);
  const seen = [...columns.keys()].filter((column) => weights[column] > 0);
  const chosen = seen.sort((a, b) => weights[b] - weights[a]).slice(0, MOST_KEYS).sort((a, b) => a - b);
  const products = chosen.map((column) => vectorOf("key", column).map((value, channel) => value * query[channel]));
  const which = seen.length > MOST_KEYS ? `the ${MOST_KEYS} keys of the largest weights` : "every key that it sees";
  $("detail-about").textContent =
    `${K} channels: query of ${rows[row]} (${row}), then its products with ${which}. ` +
    `At the right their sum, divided by √${K}, and, after ${DATA.detail.then}, the weight.`;
  const label = 110, numbers = 116, line = 16, room = $("detail-figure").clientWidth - label - numbers;
  const cell = Math.max(2, Math.min(18, room / K));
  const context = prepare($("detail"), label + cell * K + numbers, line * (chosen.length + 1) + 6);
  context.font = `12px ${FONT}`;
  context.textBaseline = "middle";
  const drawLine = (name, values, most, y, text) => {
    context.globalAlpha = 1;
    context.fillStyle = theme.ink;
    context.textAlign = "right";
    context.fillText(name, label - 6, y + line / 2, label - 8);
    context.textAlign = "left";
    context.fillText(text, label + cell * K + 8, y + line / 2);
    values.forEach((value, channel) => {
      context.globalAlpha = Math.min(1, Math.abs(value) / most);
      context.fillStyle = value < 0 ? theme.negative : theme.positive;
      context.fillRect(label + channel * cell, y + 1, Math.max(1, cell - 1), line - 2);
    });
  };
  drawLine("query", query, Math.max(...query.map(Math.abs), 1e-9), 0, "score  weight");
  const most = Math.max(...products.flat().map(Math.abs), 1e-9); // of all lines, so that they can be compared
  chosen.forEach((column, index) => {
    const score = products[index].reduce((total, value) => total + value, 0) / Math.sqrt(K);
    const text = `${score.toFixed(2).padStart(5)}  ${weights[column].toFixed(3).padStart(6)}`;
    drawLine(`${columns[column]} (${column})`, products[index], most, line * (index + 1) + 6, text);
  });
  context.globalAlpha = 1;
}

function drawPair(row, column) {
  const about = $("detail-about"), canvas = $("detail");
  const K = DATA.detail.width, query = vectorOf("query", row), key = vectorOf("key", column);
  const products = query.map((value, channel) => value * key[channel]);
  const sum = products.reduce((total, value) => total + value, 0);
  const weight = shown.weights[row * shown.stack.columns.length + column];
  about.textContent =
    `${K} channels: query of ${shown.stack.rows[row]} (${row}), key of ${shown.stack.columns[column]} (${column}), their products. ` +
    `Sum ${sum.toFixed(2)}, divided by √${K}: ${(sum / Math.sqrt(K)).toFixed(2)}; ${DATA.detail.then}: weight ${weight.toFixed(3)}.`;
  const label = 62, height = 56, gap = 10, bar = Math.max(2, Math.min(18, ($("detail-figure").clientWidth - label) / K));
  const context = prepare(canvas, label + bar * K, 3 * (height + gap));
  context.font = `12px ${FONT}`;
  context.textBaseline = "middle";
  [["query", query], ["key", key], ["product", products]].forEach(([name, values], index) => {
    const middle = index * (height + gap) + height / 2 + gap / 2, most = Math.max(...values.map(Math.abs), 1e-9);
    context.fillStyle = theme.faint;
    context.fillText(name, 0, middle);
    context.fillRect(label, middle - 0.25, bar * K, 0.5);
    values.forEach((value, channel) => {
      context.fillStyle = value < 0 ? theme.negative : theme.positive;
      context.fillRect(label + channel * bar, middle, Math.max(1, bar - 1), (-value / most) * (height / 2));
    });
  });
}

/** One query or key vector of the chosen layer and head. */
function vectorOf(part, token) {
  const K = DATA.detail.width;
  let at = 0, scale = 0;
  for (let k = 0; k <= state.stack; k++) {
    const stack = DATA.stacks[k], sizes = [stack.rows.length * K, stack.columns.length * K];
    if (k < state.stack) {
      at += stack.layers * stack.heads * (sizes[0] + sizes[1]);
      scale += 2;
    } else {
      const all = stack.layers * stack.heads, isKey = part === "key";
      at += (isKey ? all * sizes[0] : 0) + (state.layer * stack.heads + state.head) * sizes[isKey ? 1 : 0] + token * K;
      scale += isKey ? 1 : 0;
    }
  }
  return Array.from(detail.subarray(at, at + K), (code) => code * DATA.detail.scales[scale]);
}

function drawTraining() {
  const moment = DATA.moments[state.time], steps = DATA.moments.map(({ step }) => step.toLocaleString("en"));
  const loss = moment.loss === null ? "" : `\ntraining loss ${moment.loss.toFixed(3)} ${DATA.unit}`;
  $("when").textContent = `step ${steps[state.time]} of ${steps[LAST]}${loss}`;
  $("time").setAttribute("aria-valuetext", $("when").textContent);
  $("time").value = state.time;
  const known = DATA.moments.map(({ loss }, index) => [index, loss]).filter(([, value]) => value !== null);
  const values = known.map(([, value]) => value), low = Math.min(...values), high = Math.max(...values);
  const points = known.map(([index, value]) => `${index},${1 - (value - low) / (high - low || 1)}`).join(" ");
  $("loss").setAttribute("viewBox", `0 0 ${Math.max(1, LAST)} 1`);
  $("loss").innerHTML = `<polyline points="${points}"/><line x1="${state.time}" x2="${state.time}" y1="0" y2="1"/>`;
  const some = steps.length > 4 ? `${steps.slice(0, 3).join(", ")} … ${steps[LAST]}` : steps.join(", ");
  const range = known.length ? `line: training loss, ${low.toFixed(2)} to ${high.toFixed(2)} ${DATA.unit}, at the ` : "";
  $("loss-about").textContent = `${range}${steps.length} steps ${some}, drawn at equal distances`;
}

function drawChoice() {
  drawMatrix();
  drawLines();
  drawTexts();
  drawRanking();
  say();
  drawDetail();
}

/** Draws all anew, from the weights of the chosen moment. */
async function show() {
  const ticket = ++requested, { stack: k, layer, head, time } = state;
  const codes = await codesOf(time);
  if (ticket !== requested) return; // something else was chosen in the meantime
  const stack = DATA.stacks[k];
  shown = { stack, codes, weights: weightsOf(codes, k, layer, shownHeads()) };
  layOutMatrix();
  drawTraining();
  drawOverview();
  drawChoice();
  const heads = shownHeads();
  const each = heads.map((one) => statistics(weightsOf(codes, k, layer, [one]), stack.rows.length, stack.columns.length));
  const mean = (name) => each.reduce((sum, one) => sum + one[name], 0) / each.length;
  const several = heads.length === stack.heads ? "mean of all heads" : `mean of heads ${heads.join(", ")}`;
  const name = heads.length === 1 ? `head ${heads[0]}` : several;
  drawSwitches();
  const far = stack.same ? `, mean distance ${mean("distance").toFixed(1)} tokens` : "";
  const whose = heads.length === 1 ? "mean entropy" : "mean entropy of a head";
  $("about").textContent = `${stack.title}: layer ${layer}, ${name}; ${whose} ${mean("entropy").toFixed(2)} nats${far}`;
  $("matrix").setAttribute("aria-label", `Matrix of weights: rows attend, columns are attended to. ${$("about").textContent}. Arrow keys choose a cell.`);
  $("lines").setAttribute("aria-label", "Lines from each token to what it attends to. Arrow keys choose.");
  document.documentElement.dataset.shown = String(ticket); // what is on the screen is complete
}

// -------------------------------------------------------------------------------------------------------------- choice

let planned = null; // many movements of the pointer share one drawing

/** Chooses a row and a column (null for none); what is pinned stays until it is pinned elsewhere or let go. */
function choose(row, column, pin = false) {
  if (state.pinned && !pin) return;
  if (row === state.row && column === state.column && pin === state.pinned) return;
  Object.assign(state, { row, column, pinned: pin && (row !== null || column !== null) });
  if (pin) writeAddress();
  if (planned === null) planned = requestAnimationFrame(() => { planned = null; drawChoice(); });
}

/** A click pins, and lets go of what is pinned already. */
function pin(row, column) {
  if (state.pinned && row === state.row && column === state.column) letGo();
  else choose(row, column, true);
}

const letGo = () => choose(null, null, true);

function cellAt(event) {
  const box = $("matrix").getBoundingClientRect(), { rows, columns } = shown.stack;
  const row = Math.floor((event.clientY - box.top - matrix.margin) / matrix.cell);
  const column = Math.floor((event.clientX - box.left - matrix.margin) / matrix.cell);
  if (row < 0 || row >= rows.length || column < 0 || column >= columns.length) return [null, null];
  return [row, column];
}

function lineAt(event) {
  const box = $("lines").getBoundingClientRect(), index = Math.floor((event.clientY - box.top) / lineHeight());
  const left = event.clientX < box.left + box.width / 2, labels = left ? shown.stack.rows : shown.stack.columns;
  if (index < 0 || index >= labels.length) return [null, null];
  return left ? [index, null] : [null, index];
}

function tokenAt(event) {
  const token = event.target.closest(".text span");
  if (!token) return null;
  return tokenChoice([...token.parentNode.children].indexOf(token), token.parentNode.dataset.side);
}

/** The choice that a token of a text stands for. */
function tokenChoice(index, side) {
  const byColumn = shown.stack.same ? $("direction").value === "column" : side === "column";
  return byColumn ? [null, index] : [index, null];
}

/** Arrow keys: the next place of a list of `count`, or null for another key. */
function moved(key, place, count, less, more) {
  const from = place === null ? (key === more ? -1 : count) : place;
  const to = { [less]: from - 1, [more]: from + 1, Home: 0, End: count - 1 }[key];
  return to === undefined ? null : Math.max(0, Math.min(count - 1, to));
}

function onKeys(event) {
  if (event.altKey || event.ctrlKey || event.metaKey) return; // the browser's own, as Alt and Left for the page before
  if (event.key === "Escape") return letGo();
  if (!shown) return;
  const { rows, columns } = shown.stack, target = event.target, { row, column } = state;
  let choice = null;
  if (target.id === "matrix" || target.id === "lines") {
    const down = moved(event.key, row, rows.length, "ArrowUp", "ArrowDown");
    const across = ["Home", "End"].includes(event.key) ? null : moved(event.key, column, columns.length, "ArrowLeft", "ArrowRight");
    if (down !== null) choice = [down, column];
    else if (across !== null) choice = [row, across];
  } else if (target.dataset.side) {
    const place = moved(event.key, shades().chosen ?? null, target.children.length, "ArrowLeft", "ArrowRight");
    if (place !== null) choice = tokenChoice(place, target.dataset.side);
  }
  if (choice) {
    event.preventDefault();
    choose(...choice, true);
  }
}

// --------------------------------------------------------------------------------------------------------------- parts

function fill(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
}

/** The lists, the texts and the buttons of the chosen stack. */
function buildStack() {
  const stack = DATA.stacks[state.stack];
  state.layer = Math.min(state.layer, stack.layers - 1);
  state.head = Math.min(state.head, stack.heads - 1);
  $("heads").replaceChildren(...Array.from({ length: stack.heads }, (_, head) => headSwitch(head)));
  $("lines-scroll").scrollTop = 0;
  fill($("layer"), Array.from({ length: stack.layers }, (_, layer) => [layer, layer]));
  fill($("head"), [...Array.from({ length: stack.heads }, (_, head) => [head, head]), [ALL, "all"]]);
  [$("stack").value, $("layer").value, $("head").value] = [state.stack, state.layer, state.head];
  $("direction-label").hidden = !stack.same;
  const sides = stack.same ? [["row", "text"]] : [["column", "attended to"], ["row", "attending"]];
  $("texts").replaceChildren(...sides.map(([side, title]) => textOf(side, title, side === "row" ? stack.rows : stack.columns)));
  $("overview").style.gridTemplateColumns = `repeat(${stack.heads}, minmax(16px, 56px))`;
  const places = Array.from({ length: stack.layers * stack.heads }, (_, i) => [Math.floor(i / stack.heads), i % stack.heads]);
  $("overview").replaceChildren(...places.map(([layer, head]) => thumbnail(layer, head)));
}

function textOf(side, title, labels) {
  const section = document.createElement("div"), heading = document.createElement("h2"), strip = document.createElement("div");
  section.className = "text";
  strip.classList.toggle("words", labels.some((label) => [...label].length > 1));
  heading.textContent = title;
  Object.assign(strip, { tabIndex: 0, role: "application" });
  strip.dataset.side = side;
  strip.setAttribute("aria-label", `${title}; the left and right arrow keys choose a token`);
  for (const label of labels) {
    const token = document.createElement("span");
    token.textContent = label + (label.endsWith("↵") ? "\n" : label === "␣" ? "\u200b" : ""); // where a line may end
    if (["␣", "↵", "⇥"].includes(label)) token.className = "blank";
    strip.append(token);
  }
  section.append(heading, strip);
  return section;
}

/** Takes one of all heads out of the picture, or back in; after the last one all come back. */
function headSwitch(head) {
  const button = document.createElement("button");
  Object.assign(button, { type: "button", textContent: head });
  button.setAttribute("aria-label", `head ${head}`);
  button.addEventListener("click", () => {
    if (!state.off.delete(head)) state.off.add(head);
    if (shownHeads().length === 0) state.off.clear();
    showChosen();
  });
  return button;
}

function drawSwitches() {
  $("heads").hidden = state.head !== ALL || shown.stack.heads === 1;
  for (const [head, button] of [...$("heads").children].entries()) {
    button.setAttribute("aria-pressed", String(!state.off.has(head)));
    button.style.setProperty("--mark", headColor(head));
  }
}

function thumbnail(layer, head) {
  const button = document.createElement("button");
  button.type = "button";
  button.title = `layer ${layer}, head ${head}`;
  button.setAttribute("aria-label", button.title);
  Object.assign(button.dataset, { layer, head });
  button.append(document.createElement("canvas"));
  button.addEventListener("click", () => {
    [$("layer").value, $("head").value] = [layer, head];
    Object.assign(state, { layer, head });
    showChosen();
  });
  return button;
}

let timer = null;

function stop() {
  clearInterval(timer);
  timer = null;
  $("play").textContent = "▶";
  $("play").setAttribute("aria-label", "Play the training");
}

function play() {
  if (timer !== null) return stop();
  if (state.time === LAST) {
    state.time = 0;
    showChosen();
  }
  $("play").textContent = "■";
  $("play").setAttribute("aria-label", "Stop");
  timer = setInterval(() => {
    state.time += 1;
    showChosen();
    if (state.time === LAST) stop();
  }, 700);
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").setAttribute("aria-pressed", String(name === "dark"));
  readTheme();
  if (shown) show();
}

/** Shows what the address chooses, as in attention.html#stack=2&layer=1&head=all&off=0.3&time=3&row=7&column=2 */
async function followAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const number = (name, count, otherwise) => (/^\d+$/.test(asked.get(name)) ? Math.min(Number(asked.get(name)), count - 1) : otherwise);
  const stack = number("stack", DATA.stacks.length, FIRST), { rows, columns, layers, heads } = DATA.stacks[stack];
  const [layer, head] = asked.has("layer") || asked.has("head") ? [0, 0] : sharpest(await codesOf(LAST), stack);
  const row = number("row", rows.length, null), column = number("column", columns.length, null);
  Object.assign(state, { stack, layer: number("layer", layers, layer), time: number("time", LAST + 1, LAST) });
  state.head = asked.get("head") === "all" ? ALL : number("head", heads, head);
  state.off = new Set((asked.get("off") ?? "").split(".").filter((each) => /^\d+$/.test(each)).map(Number));
  if ([...Array(heads).keys()].every((each) => state.off.has(each))) state.off.clear();
  Object.assign(state, { row, column, pinned: row !== null || column !== null });
  for (const name of ["scale", "direction"]) {
    const values = Array.from($(name).options, (option) => option.value);
    $(name).value = values.includes(asked.get(name)) ? asked.get(name) : values[0];
  }
  stop();
  buildStack();
  show();
}

let writing = null; // browsers limit how often an address may change: a key held down changes it once

/** Writes what is chosen into the address, so that it can be passed on. */
function writeAddress() {
  clearTimeout(writing);
  writing = setTimeout(() => {
    const { stack, layer, time, pinned } = state, head = state.head === ALL ? "all" : state.head;
    const off = state.head === ALL && state.off.size > 0 ? [...state.off].sort((a, b) => a - b).join(".") : null;
    const row = pinned ? state.row : null, column = pinned ? state.column : null;
    const chosen = { stack, layer, head, off, time, row, column, scale: $("scale").value, direction: $("direction").value };
    const parts = Object.entries(chosen).filter(([, value]) => value !== null);
    history.replaceState(null, "", new URL(`#${new URLSearchParams(parts)}`, location)); // its own address: in srcdoc the base is another one
  }, 200);
}

function showChosen() {
  writeAddress();
  show();
}

function listen() {
  const chosen = (id, apply) => $(id).addEventListener("input", () => { apply(Number($(id).value)); showChosen(); });
  chosen("stack", (value) => { Object.assign(state, { stack: value, off: new Set(), row: null, column: null, pinned: false }); buildStack(); });
  chosen("layer", (value) => { state.layer = value; });
  chosen("head", (value) => { state.head = value; });
  chosen("scale", () => {});
  chosen("time", (value) => { stop(); state.time = value; });
  $("direction").addEventListener("input", () => {
    const index = state.row ?? state.column;
    writeAddress();
    choose(...tokenChoice(index, "row"), index !== null);
  });
  $("play").addEventListener("click", play);
  $("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const [part, at] of [[$("matrix"), cellAt], [$("lines"), lineAt], [$("texts"), tokenAt]]) {
    part.addEventListener("pointermove", (event) => { const found = at(event); if (found) choose(...found); });
    part.addEventListener("pointerleave", () => choose(null, null));
    part.addEventListener("click", (event) => { const found = at(event); if (found) pin(...found); });
  }
  document.addEventListener("keydown", onKeys);
  addEventListener("hashchange", followAddress);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) show(); // a phone's bars change the height alone
    width = innerWidth;
  });
  return dark.matches;
}

$("time").max = LAST;
$("training").hidden = LAST === 0;
fill($("stack"), DATA.stacks.map((stack, index) => [index, stack.title]));
$("stack").parentNode.hidden = DATA.stacks.length === 1;
document.querySelector("main").hidden = false;
setTheme(listen() ? "dark" : "light");
followAddress();
