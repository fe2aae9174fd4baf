// Many points of a map: with WebGL2, or, where there is none, on a 2-D canvas.
"use strict";

// Okabe and Ito's colours, told apart by the colour-blind, without black (dark pages) and with grey; each with four shapes.
const PALETTE = ["#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#F0E442", "#999999"];
const SHAPES = 4; // disc, square, triangle, diamond
const MARKS = PALETTE.length * SHAPES;
// Of a rank: dark blue to yellow, after cividis.
const RAMP = ["#00224E", "#233E6C", "#434E6C", "#575D6D", "#707173", "#8A8678", "#A59C74", "#C3B369", "#E1CC55", "#FEE838"];

const VERTEX = `#version 300 es
in vec2 place;
in uint mark;
uniform vec2 centre, span;
uniform float size, ramp;
uniform uint marks;
uniform int chosen;
uniform vec3 colours[${PALETTE.length}], ramps[${RAMP.length}];
flat out vec4 colour;
flat out int shape;
flat out float shade;
void main() {
  vec2 at = (place - centre) / span;
  gl_Position = vec4(2.0 * at.x, -2.0 * at.y, 0.0, 1.0);
  gl_PointSize = size;
  shade = size > 5.0 ? 0.6 : 1.0; // a rim tells neighbours apart, where there is room for one
  if (ramp > 0.5) {
    colour = vec4(ramps[int(mark)], 1.0);
    shape = 0;
  } else {
    int number = int(mark % marks);
    colour = vec4(colours[number % ${PALETTE.length}], 1.0);
    shape = number / ${PALETTE.length};
  }
  if (chosen >= 0 && uint(chosen) != mark) {
    colour = vec4(0.5, 0.5, 0.5, 0.18);
    gl_PointSize = max(1.5, 0.6 * size);
  }
}`;

const FRAGMENT = `#version 300 es
precision mediump float;
flat in vec4 colour;
flat in int shape;
flat in float shade;
out vec4 pixel;
void main() {
  vec2 at = 2.0 * gl_PointCoord - 1.0;
  float edge = shape == 0 ? length(at)
    : shape == 1 ? max(abs(at.x), abs(at.y)) * 1.15
    : shape == 2 ? max(at.y / 0.85, 1.85 * abs(at.x) - at.y)
    : abs(at.x) + abs(at.y);
  if (edge > 1.0) discard;
  float rim = edge > 0.75 ? shade : 1.0;
  pixel = vec4(colour.rgb * rim * colour.a, colour.a);
}`;

function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255);
}

// A canvas of points. `places` is Float32Array [2 n] in 0 .. 1; marks and the view are given to `mark` and `draw`.
function makePoints(canvas, places) {
  const gl = canvas.getContext("webgl2", { antialias: false, alpha: true, premultipliedAlpha: true });
  return gl ? pointsOfWebGL(gl, places) : pointsOfCanvas(canvas.getContext("2d"), places);
}

function compile(gl, kind, text) {
  const shader = gl.createShader(kind);
  gl.shaderSource(shader, text);
  gl.compileShader(shader);
  if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
  return shader;
}

function pointsOfWebGL(gl, places) {
  const program = gl.createProgram();
  gl.attachShader(program, compile(gl, gl.VERTEX_SHADER, VERTEX));
  gl.attachShader(program, compile(gl, gl.FRAGMENT_SHADER, FRAGMENT));
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
  gl.useProgram(program);
  const at = (name) => gl.getUniformLocation(program, name);
  const buffer = (name, size, kind, data) => {
    const made = gl.createBuffer(), place = gl.getAttribLocation(program, name);
    gl.bindBuffer(gl.ARRAY_BUFFER, made);
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
    gl.enableVertexAttribArray(place);
    if (kind === gl.UNSIGNED_INT) gl.vertexAttribIPointer(place, size, kind, 0, 0);
    else gl.vertexAttribPointer(place, size, kind, false, 0, 0);
    return made;
  };
  const count = places.length / 2;
  buffer("place", 2, gl.FLOAT, places);
  const marks = buffer("mark", 1, gl.UNSIGNED_INT, new Uint32Array(count));
  gl.uniform3fv(at("colours"), PALETTE.flatMap(rgb));
  gl.uniform3fv(at("ramps"), RAMP.flatMap(rgb));
  gl.uniform1ui(at("marks"), MARKS);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  return {
    kind: "WebGL2",
    mark(values, isRamp) {
      gl.bindBuffer(gl.ARRAY_BUFFER, marks);
      gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
      gl.uniform1f(at("ramp"), isRamp ? 1 : 0);
    },
    draw(view, size, chosen) {
      gl.viewport(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight);
      gl.clearColor(0, 0, 0, 0);
      gl.clear(gl.COLOR_BUFFER_BIT);
      gl.uniform2f(at("centre"), view.x, view.y);
      gl.uniform2f(at("span"), view.width, view.height);
      gl.uniform1f(at("size"), size);
      gl.uniform1i(at("chosen"), chosen);
      gl.drawArrays(gl.POINTS, 0, count);
    },
    finish() { // until the picture is there: reading a pixel waits for it
      gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
    },
  };
}

function pointsOfCanvas(context, places) {
  let marks = new Uint32Array(places.length / 2), colours = PALETTE;
  return {
    kind: "2-D canvas",
    mark(values, isRamp) {
      [marks, colours] = [values, isRamp ? RAMP : PALETTE];
    },
    draw(view, size, chosen) {
      const { width, height } = context.canvas;
      context.clearRect(0, 0, width, height);
      for (let colour = 0; colour < colours.length; colour++) { // all of one colour: changing it costs most
        context.fillStyle = colours[colour];
        for (let i = 0; i < marks.length; i++) {
          if (marks[i] % colours.length !== colour || (chosen >= 0 && marks[i] !== chosen)) continue;
          const x = ((places[2 * i] - view.x) / view.width + 0.5) * width;
          const y = ((places[2 * i + 1] - view.y) / view.height + 0.5) * height;
          context.fillRect(x - size / 2, y - size / 2, size, size);
        }
      }
    },
    finish() {},
  };
}

// One mark on a small canvas, for the legend; the shapes are those of the shader.
function drawMark(canvas, number) {
  const context = canvas.getContext("2d"), shape = Math.floor((number % MARKS) / PALETTE.length);
  canvas.width = canvas.height = 28;
  context.fillStyle = PALETTE[number % PALETTE.length];
  context.beginPath();
  if (shape === 0) context.arc(14, 14, 12, 0, 2 * Math.PI);
  if (shape === 1) context.rect(3, 3, 22, 22);
  if (shape === 2) { context.moveTo(14, 2); context.lineTo(26, 26); context.lineTo(2, 26); }
  if (shape === 3) { context.moveTo(14, 1); context.lineTo(27, 14); context.lineTo(14, 27); context.lineTo(1, 14); }
  context.closePath();
  context.fill();
  context.strokeStyle = "#00000080";
  context.lineWidth = 2;
  context.stroke();
}

// Which points lie where: 256 x 256 cells, each with its points one after the other.
class Places {
  constructor(places) {
    this.places = places;
    this.count = places.length / 2;
    this.begins = new Uint32Array(65537);
    this.order = new Uint32Array(this.count);
    const cells = new Uint16Array(this.count);
    for (let i = 0; i < this.count; i++) {
      cells[i] = 256 * this.cell(places[2 * i + 1]) + this.cell(places[2 * i]);
      this.begins[cells[i] + 1]++;
    }
    for (let cell = 0; cell < 65536; cell++) this.begins[cell + 1] += this.begins[cell];
    const next = this.begins.slice(0, 65536);
    for (let i = 0; i < this.count; i++) this.order[next[cells[i]]++] = i;
  }
  cell(value) {
    return Math.min(255, Math.max(0, Math.floor(256 * value)));
  }
  // The points within a box, at most `most` of them.
  within(left, top, right, bottom, most = Infinity) {
    const found = [];
    for (let row = this.cell(top); row <= this.cell(bottom); row++) {
      const first = this.begins[256 * row + this.cell(left)], last = this.begins[256 * row + this.cell(right) + 1];
      for (let at = first; at < last; at++) {
        const i = this.order[at], x = this.places[2 * i], y = this.places[2 * i + 1];
        if (x >= left && x <= right && y >= top && y <= bottom && found.push(i) >= most) return found;
      }
    }
    return found;
  }
}
