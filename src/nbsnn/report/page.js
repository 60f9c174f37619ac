"use strict";
// On paper nothing is folded.
(function () {
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((part) => { part.open = true; });
  });
  window.addEventListener("afterprint", () => opened.forEach((part) => { part.open = false; }));
})();
// The raster that one can step through: the same spikes as in the charts, drawn up to a step.
(function () {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const raster = figures.raster;
  const place = document.getElementById("stepper");
  if (!raster || !place || !raster.ways.length) return;
  document.documentElement.classList.add("live");
  const canvas = place.querySelector("canvas"), pen = canvas.getContext("2d");
  const choice = place.querySelector("select"), slider = place.querySelector("input"), said = place.querySelector("output");
  const button = place.querySelector("button");
  let timer = null;
  raster.ways.forEach((way, index) => choice.add(new Option(`${way.neuron} ${way.schedule}`, index)));

  function color(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

  function draw() {
    const way = raster.ways[choice.value], step = Number(slider.value), scale = window.devicePixelRatio || 1;
    const wide = place.clientWidth, names = Math.min(150, wide * 0.34), row = 4, gap = 6;
    const rows = way.layers.reduce((n, layer) => n + layer.rows.length * row + gap, gap);
    canvas.width = wide * scale;
    canvas.height = rows * scale;
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, wide, rows);
    pen.font = "10px sans-serif";
    pen.textBaseline = "middle";
    const size = (wide - names) / way.steps;
    let top = gap, spikes = 0, negative = 0;
    pen.fillStyle = color("--line");
    pen.fillRect(names + (step - 1) * size, 0, Math.max(size, 1), rows);
    way.layers.forEach((layer, index) => {
      pen.fillStyle = color("--soft");
      pen.fillText(layer.name, 0, top + layer.rows.length * row / 2, names - 6);
      layer.rows.forEach((letters) => {
        for (let t = 0; t < step; t++) {
          const letter = letters[t + 1 - layer.first];
          if (letter !== "+" && letter !== "-") continue;
          pen.fillStyle = letter === "-" ? color("--3") : color(index % 2 ? "--1" : "--0");
          pen.globalAlpha = t === step - 1 ? 1 : 0.45;
          pen.fillRect(names + t * size + size * 0.08, top, Math.max(size * 0.84, 1), row - 0.8);
          if (t === step - 1) { if (letter === "-") negative++; else spikes++; }
        }
        pen.globalAlpha = 1;
        top += row;
      });
      top += gap;
    });
    said.textContent = `step ${step} of ${way.steps}: ${spikes} spikes and ${negative} negative ones of the neurons shown`;
  }

  function choose() { slider.max = raster.ways[choice.value].steps; slider.value = slider.max; draw(); }
  function stop() { clearInterval(timer); timer = null; button.textContent = "play"; }

  button.addEventListener("click", () => {
    if (timer) return stop();
    if (slider.value === slider.max) slider.value = 0;
    button.textContent = "stop";
    timer = setInterval(() => { slider.stepUp(); draw(); if (slider.value === slider.max) stop(); }, 350);
  });
  choice.addEventListener("change", () => { stop(); choose(); });
  slider.addEventListener("input", () => { stop(); draw(); });
  window.addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  choose();
})();
