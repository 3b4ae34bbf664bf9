// What the page does without asking the server: films, and the pictures that somebody chooses or draws.
(() => {
  "use strict";
  const sources = {}; // by name: [{name, data: base64, url}]
  const of = (box) => (sources[box.dataset.source] ??= []);

  function show(box) {
    const list = box.querySelector(".chosen");
    list.replaceChildren(...of(box).map((each) => {
      const item = document.createElement("li");
      const image = document.createElement("img");
      image.src = each.url;
      image.alt = "";
      image.onerror = () => image.remove(); // no image: the server says so
      item.append(image, each.name);
      return item;
    }));
    const cells = document.querySelector(`[data-region="${box.dataset.source}"] .cells`);
    if (cells) cells.style.backgroundImage = of(box).length ? `url("${of(box)[0].url}")` : "";
  }

  function say(box, text) {
    const item = document.createElement("li");
    item.className = "problem";
    item.textContent = text;
    box.querySelector(".chosen").append(item);
  }

  async function take(box, files) {
    const most = Number(box.dataset.most), bytes = Number(box.dataset.bytes), refused = [];
    if (most === 1) sources[box.dataset.source] = [];
    for (const file of files) {
      if (of(box).length >= most) { refused.push(`${file.name}: at most ${most} at a time`); break; }
      if (file.size > bytes) { refused.push(`${file.name}: ${(file.size / 1e6).toFixed(1)} MB, expected at most ${bytes / 1e6} MB`); continue; }
      const url = await new Promise((done) => {
        const reader = new FileReader();
        reader.onload = () => done(reader.result);
        reader.onerror = () => done("");
        reader.readAsDataURL(file);
      });
      of(box).push({ name: file.name, data: url.slice(url.indexOf(",") + 1), url });
    }
    show(box);
    refused.forEach((text) => say(box, text));
  }

  // --- the drawing board ----------------------------------------------------------------------------------------------
  const pens = new WeakMap(); // canvas: {x, y, down}
  const pen = (canvas) => {
    if (!pens.has(canvas)) {
      pens.set(canvas, { x: 112, y: 112, down: false });
      const draw = canvas.getContext("2d");
      draw.fillStyle = "#000";
      draw.fillRect(0, 0, canvas.width, canvas.height);
    }
    return pens.get(canvas);
  };
  function stroke(canvas, x, y, drawn) {
    const at = pen(canvas), draw = canvas.getContext("2d");
    if (drawn) {
      draw.lineWidth = 20;
      draw.lineCap = draw.lineJoin = "round";
      draw.strokeStyle = canvas.closest("fieldset").querySelector("input[type=color]")?.value ?? "#fff";
      draw.beginPath();
      draw.moveTo(at.x, at.y);
      draw.lineTo(x, y);
      draw.stroke();
    }
    at.x = x;
    at.y = y;
  }
  const place = (canvas, event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * canvas.width / box.width, (event.clientY - box.top) * canvas.height / box.height];
  };
  const board = (event) => event.target.closest?.(".source canvas");
  document.addEventListener("pointerdown", (event) => {
    const canvas = board(event);
    if (!canvas) return;
    canvas.setPointerCapture(event.pointerId);
    pen(canvas).down = true;
    stroke(canvas, ...place(canvas, event), false);
    stroke(canvas, ...place(canvas, event), true);
  });
  document.addEventListener("pointermove", (event) => {
    const canvas = board(event);
    if (canvas && event.buttons) stroke(canvas, ...place(canvas, event), pen(canvas).down);
  });
  document.addEventListener("pointerup", (event) => { const canvas = board(event); if (canvas) pen(canvas).down = false; });
  const steps = { ArrowLeft: [-14, 0], ArrowRight: [14, 0], ArrowUp: [0, -14], ArrowDown: [0, 14] };
  document.addEventListener("keydown", (event) => {
    const canvas = board(event);
    if (!canvas || !(event.key in steps || event.key === " ")) return;
    event.preventDefault();
    const at = pen(canvas), [dx, dy] = steps[event.key] ?? [0, 0];
    if (event.key === " ") at.down = !at.down;
    const inside = (v) => Math.min(210, Math.max(14, v));
    stroke(canvas, inside(at.x + dx), inside(at.y + dy), at.down);
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".source button[data-do]");
    if (!button) return;
    const box = button.closest(".source"), canvas = box.querySelector("canvas"), draw = canvas.getContext("2d");
    pen(canvas);
    if (button.dataset.do === "wipe") { draw.fillStyle = "#000"; draw.fillRect(0, 0, canvas.width, canvas.height); }
    if (button.dataset.do === "invert") {
      const pixels = draw.getImageData(0, 0, canvas.width, canvas.height);
      for (let k = 0; k < pixels.data.length; k += 1) if (k % 4 !== 3) pixels.data[k] = 255 - pixels.data[k];
      draw.putImageData(pixels, 0, 0);
    }
    if (button.dataset.do === "forget") { sources[box.dataset.source] = []; box.querySelector("input[type=file]").value = ""; show(box); }
    if (button.dataset.do === "use") canvas.toBlob((blob) => take(box, [new File([blob], "drawing", { type: "image/png" })]));
  });
  document.addEventListener("change", (event) => {
    const input = event.target;
    if (input.matches?.(".source input[type=file]")) take(input.closest(".source"), input.files);
  });
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      const area = event.target.closest?.(".source .drop");
      if (!area) return;
      event.preventDefault();
      area.classList.toggle("over", name === "dragover");
      if (name === "drop") take(area.closest(".source"), event.dataTransfer.files);
    });
  }

  // --- a region of a picture, of checkboxes ------------------------------------------------------------------------------
  const boxes = (region) => [...region.querySelectorAll("input[type=checkbox]")];
  const half = (count) => Math.floor(count / 2);
  const choices = {
    "lower half": (y, x, rows) => y >= half(rows),
    "upper half": (y, x, rows) => y < half(rows),
    "left half": (y, x, rows, columns) => x < half(columns),
    "right half": (y, x, rows, columns) => x >= half(columns),
    "middle": (y, x, rows, columns) => Math.abs(2 * y + 1 - rows) < rows / 2 + 1 && Math.abs(2 * x + 1 - columns) < columns / 2 + 1,
    "all": () => true,
  };
  let paint = null; // what cells are set to while the pointer is down
  const cell = (event) => document.elementFromPoint(event.clientX, event.clientY)?.closest?.(".region .cells input");
  document.addEventListener("pointerdown", (event) => {
    const at = event.target.closest?.(".region .cells input");
    if (!at || event.button) return;
    paint = !at.checked;
    at.checked = paint;
    at.releasePointerCapture?.(event.pointerId);
  });
  document.addEventListener("pointermove", (event) => {
    if (paint === null) return;
    const at = cell(event);
    if (at) at.checked = paint;
  });
  for (const name of ["pointerup", "pointercancel"]) document.addEventListener(name, () => { paint = null; });
  document.addEventListener("click", (event) => {
    const at = event.target.closest?.(".region .cells input");
    if (at && event.detail) event.preventDefault(); // the pointer has set it already; the space bar has a detail of 0
    const button = event.target.closest?.(".region button[data-choose]");
    if (!button) return;
    const region = button.closest(".region"), all = boxes(region), columns = Number(region.dataset.columns);
    const chosen = choices[button.dataset.choose], rows = all.length / columns;
    all.forEach((box, k) => { box.checked = chosen(Math.floor(k / columns), k % columns, rows, columns); });
  });
  document.addEventListener("keydown", (event) => {
    const at = event.target.closest?.(".region .cells input");
    if (!at || !event.key.startsWith("Arrow")) return;
    event.preventDefault();
    const region = at.closest(".region"), all = boxes(region), columns = Number(region.dataset.columns), k = all.indexOf(at);
    const to = { ArrowLeft: k % columns ? k - 1 : k, ArrowRight: (k + 1) % columns ? k + 1 : k, ArrowUp: k - columns, ArrowDown: k + columns }[event.key];
    if (!all[to]) return;
    at.tabIndex = -1;
    all[to].tabIndex = 0;
    all[to].focus();
  });
  window.tarflowRegion = (name) => JSON.stringify(
    boxes(document.querySelector(`[data-region="${name}"]`)).flatMap((box, k) => (box.checked ? [k] : [])));

  // --- films ----------------------------------------------------------------------------------------------------------
  document.addEventListener("input", (event) => {
    const slider = event.target;
    if (!slider.matches?.(".film input[type=range]")) return;
    const film = slider.closest(".film"), frames = film.querySelectorAll(".reel li"), chosen = frames[Number(slider.value)];
    const image = chosen.querySelector("img"), main = film.querySelector(":scope > img");
    main.src = image.src;
    main.alt = film.querySelector("output").textContent = image.alt;
    slider.setAttribute("aria-valuetext", image.alt);
    frames.forEach((frame) => frame === chosen ? frame.setAttribute("aria-current", "true") : frame.removeAttribute("aria-current"));
  });

  // What an event of the page sends in place of its hidden fields: the pictures as JSON, and the seed.
  window.tarflowSource = (name) => {
    const box = document.querySelector(`.source[data-source="${name}"]`);
    const seed = box.querySelector(".seed input")?.value ?? "";
    return [JSON.stringify(of(box).map(({ name, data }) => ({ name, data }))), seed === "" ? null : Number(seed)];
  };
})();
