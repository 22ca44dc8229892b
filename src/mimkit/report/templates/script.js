"use strict";
// Without this script the page still shows everything: titles appear as plain tooltips, and the last picture stands.

const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);

function showTip(stop, event) {
  const colors = Array.from(stop.querySelectorAll("circle"), (dot) => dot.getAttribute("class"));
  tip.replaceChildren(...stop.dataset.lines.split("\n").map((text, place) => {
    const line = document.createElement("div");
    if (place > 0) {
      const swatch = document.createElement("i");
      swatch.className = colors[place - 1];
      line.append(swatch);
    }
    line.append(text);
    return line;
  }));
  tip.hidden = false;
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  const right = event.clientX + 16;
  tip.style.left = Math.max(8, right > room ? Math.min(room, event.clientX - tip.offsetWidth - 16) : right) + "px";
  tip.style.top = Math.max(8, event.clientY - tip.offsetHeight - 12) + "px";
}

for (const stop of document.querySelectorAll(".stop")) {
  const title = stop.querySelector("title");
  stop.dataset.lines = title.textContent;
  title.remove();
  stop.addEventListener("pointermove", (event) => showTip(stop, event));
  stop.addEventListener("pointerleave", () => { tip.hidden = true; });
}

for (const stepper of document.querySelectorAll(".stepper")) {
  const slider = stepper.querySelector("input");
  if (!slider) continue;
  const pictures = stepper.querySelectorAll("img");
  slider.hidden = false;
  slider.addEventListener("input", () => {
    pictures.forEach((picture, place) => { picture.hidden = place !== Number(slider.value); });
    stepper.querySelector("output").textContent = "step " + pictures[slider.value].dataset.step;
  });
}

addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details.run")) details.open = true;
});
