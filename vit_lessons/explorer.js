// One function expression: explorer.html adds the arguments.
((name, data) => {
  // The same figure may be shown twice: take the one that is not ready.
  const root = [...document.querySelectorAll(`figure#${name}`)].find(
    (figure) => !figure.explorerReady,
  );
  if (!root) return;
  root.explorerReady = true;
  // Away with the static picture, and with what a saved page holds.
  root.querySelectorAll("img, .view").forEach((old) => old.remove());
  const find = (selector) => root.querySelector(selector);
  find("template").after(find("template").content.cloneNode(true));
  const stage = find(".stage");
  const pen = find("canvas").getContext("2d");

  const { prefix, heads } = data;
  const [rows, columns] = data.grid;
  const patches = rows * columns;
  const tokens = prefix + patches;
  let image = 0;
  let layer = heads.length - 1;
  let head = -1; // the mean of the heads
  let token = data.query === null ? 0 : prefix + data.query; // it looks
  let patch = data.query ?? (rows >> 1) * columns + (columns >> 1);
  let held = false; // then hovering changes nothing

  // --- The data, as explorer.py writes it --------------------------------

  const alphabet =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  const digits = new Map([...alphabet].map((letter, i) => [letter, i]));
  const decode = (text, at, length) =>
    Array.from(text.slice(at, at + length), (letter) => digits.get(letter));
  const number = (...where) => decode(...where).reduce((n, d) => n * 64 + d, 0);
  const weight = (text, at) => (number(text, at, 3) / (64 ** 3 - 1)) ** 2;

  function factsOf(h) {
    const text = data.facts[image][layer];
    const at = (h * tokens + token) * (5 + 3 * prefix);
    const others = [];
    for (let t = 0; t < prefix; t++) {
      others.push([weight(text, at + 5 + 3 * t), t]);
    }
    const best = number(text, at + 3, 2);
    return { largest: weight(text, at), best, others };
  }

  const levelsOf = (h) =>
    decode(data.levels[image][layer], (h * tokens + token) * patches, patches);

  function meanLevels(largest) {
    const sum = new Float64Array(patches);
    for (let h = 0; h < heads[layer]; h++) {
      const share = factsOf(h).largest / heads[layer] / (largest || 1);
      levelsOf(h).forEach((level, n) => {
        sum[n] += share * (level / 63) ** 2;
      });
    }
    return sum.map((w) => Math.min(63, Math.round(63 * Math.sqrt(w))));
  }

  // --- Words -------------------------------------------------------------

  function percent(share) {
    const value = 100 * share;
    if (value > 0 && value < 0.01) return "less than 0.01\u00a0%";
    const places = value === 0 || value >= 9.95 ? 0 : value >= 0.995 ? 1 : 2;
    return `${value.toFixed(places)}\u00a0%`;
  }

  const row = (n) => Math.floor(n / columns);
  const column = (n) => n % columns;

  function called(t) {
    if (t < prefix) return t ? `token ${t + 1}` : "the class token";
    const n = t - prefix;
    return `the patch in row ${row(n) + 1}, column ${column(n) + 1}`;
  }

  function sentence(looks, from, { largest, best, others }) {
    const gives = [[largest, prefix + best], ...others];
    const top = gives.reduce((a, b) => (b[0] > a[0] ? b : a));
    const to = ([w, t]) =>
      `${percent(w)} to ${t === looks ? "itself" : called(t)}`;
    const more = gives.filter((one) => one !== top).map(to).join(", and ");
    const start = called(looks);
    return (
      `${start[0].toUpperCase()}${start.slice(1)} (layer ${layer + 1}, ` +
      `${from}) gives ${to(top)}, its largest weight.` +
      `${more && ` It gives ${more}.`} ` +
      `Even attention would be ${percent(1 / tokens)}.`
    );
  }

  // The longest sentence keeps the room: nothing moves when it changes.
  find(".longest").textContent = sentence(tokens - 1, "mean of the heads", {
    largest: prefix ? 1e-5 : 0.088,
    best: patches + columns - 1,
    others: Array.from({ length: prefix }, (_, t) => [t ? 1e-5 : 0.088, t]),
  });

  // --- What is seen ------------------------------------------------------

  function draw(aloud = true) {
    const mean = head < 0;
    const facts = factsOf(mean ? heads[layer] : head);
    const levels = mean ? meanLevels(facts.largest) : levelsOf(head);
    levels.forEach((level, n) => {
      pen.fillStyle = data.colors[level];
      pen.fillRect(column(n), row(n), 1, 1);
    });
    stage.style.backgroundImage = `url(${data.images[image]})`;
    for (const [place, n] of [[".ring", facts.best], [".frame", patch]]) {
      find(place).setAttribute("transform", `translate(${column(n)} ${row(n)})`);
    }
    find(".frame").style.display = token < prefix ? "none" : "";
    stage.classList.toggle("held", held);
    root.querySelectorAll("button").forEach((button, t) => {
      button.setAttribute("aria-pressed", t === Math.min(token, prefix));
    });
    root.querySelectorAll(".ticks span").forEach((tick, i) => {
      tick.textContent = percent((facts.largest * i ** 2) / 4);
    });
    const from = mean ? "mean of the heads" : `head ${head + 1}`;
    find(".now").setAttribute("aria-live", aloud ? "polite" : "off");
    find(".now").textContent = sentence(token, from, facts);
  }

  function choose(t, hold, aloud) {
    token = t;
    held = hold;
    if (t >= prefix) patch = t - prefix;
    draw(aloud);
  }

  function setLayer(i) {
    layer = i;
    const one = heads[layer] === 1;
    head = one ? 0 : Math.min(head, heads[layer] - 1);
    const options = one ? [] : [new Option("mean", -1)];
    for (let h = 0; h < heads[layer]; h++) options.push(new Option(h + 1, h));
    find(".head").replaceChildren(...options);
    find(".head").value = head;
    find(".layer").value = layer;
    draw();
  }

  find(".layer").onchange = (event) => setLayer(+event.target.value);
  find(".head").onchange = (event) => {
    head = +event.target.value;
    draw();
  };
  find(".image").onchange = (event) => {
    image = +event.target.value;
    draw();
  };
  root.querySelectorAll("button").forEach((button, t) => {
    // A token stays when the mouse crosses the picture.
    const isToken = t < prefix;
    button.onclick = () => choose(isToken ? t : prefix + patch, isToken);
  });

  // --- Mouse, finger, keyboard -------------------------------------------

  const clip = (i, n) => Math.max(0, Math.min(n - 1, i));
  const at = (y, x) => prefix + clip(y, rows) * columns + clip(x, columns);
  const below = (event) => {
    const box = stage.getBoundingClientRect();
    return at(
      Math.floor(((event.clientY - box.top) / box.height) * rows),
      Math.floor(((event.clientX - box.left) / box.width) * columns),
    );
  };

  let down = {};
  stage.onpointerdown = (event) => {
    down = event;
  };
  stage.onpointermove = (event) => {
    // A finger that moves up or down scrolls the page.
    const across = Math.abs(event.clientX - down.clientX);
    const along = Math.abs(event.clientY - down.clientY);
    const finger = event.pointerType === "touch";
    if (finger ? across > along + 8 : !held) choose(below(event), held, false);
  };
  stage.onclick = (event) => {
    const finger = down.pointerType === "touch";
    choose(below(event), finger || !held || below(event) !== token);
  };
  stage.onkeydown = (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const [y, x] = [row(patch), column(patch)];
    const places = {
      ArrowUp: [y - 1, x],
      ArrowDown: [y + 1, x],
      ArrowLeft: [y, x - 1],
      ArrowRight: [y, x + 1],
      Home: [y, 0],
      End: [y, columns - 1],
    };
    if (event.key in places) {
      choose(token < prefix ? at(y, x) : at(...places[event.key]), held);
    } else if (event.key === "Enter" || event.key === " ") {
      choose(prefix + patch, !held);
    } else return;
    event.preventDefault();
  };
  root.onkeydown = (event) => {
    if (event.key === "Escape") choose(token, false);
  };
  setLayer(layer);
})
