// One function expression: window_explorer.html adds the arguments.
((name, data) => {
  // The same figure may be shown twice: take the one that is not ready.
  const root = [...document.querySelectorAll(`figure#${name}`)].find(
    (figure) => !figure.explorerReady,
  );
  if (!root) return;
  root.explorerReady = true;
  root.classList.add("scripted");
  const find = (selector) => root.querySelector(selector);
  const stage = find(".stage");
  const cells = [...root.querySelectorAll(".map span")];
  stage.setAttribute("role", "application");
  stage.setAttribute("aria-label", stage.dataset.label);
  stage.setAttribute("aria-describedby", `${name}-text`);
  stage.tabIndex = 0;

  const { steps, tables, columns } = data;
  const { number } = tables;
  const rows = number.length / columns;
  let now = 0; // the step
  let looks = data.query; // a cell
  let bare = false; // without the mask

  // --- Who sees whom, from the tables of window_explorer.py ----------------

  const isToken = (cell) => number[cell] >= 0;

  function company(cell, step) {
    const [group, sees] = [tables[step.window], tables[step.sees]];
    const inWindow = [...group.keys()].filter(
      (other) =>
        group[other] === group[cell] && (step.padded || isToken(other)),
    );
    const isSeen = (other) => sees[other] === sees[cell];
    return {
      inWindow,
      seen: inWindow.filter(isSeen),
      apart: inWindow.filter((other) => !isSeen(other)),
    };
  }

  // --- Words -------------------------------------------------------------

  const row = (cell) => Math.floor(cell / columns);
  const column = (cell) => cell % columns;
  const count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;

  // "5 tokens: 0-3, 8, and 2 empty cells", with dashes that break no line.
  function list(group) {
    const tokens = group.filter(isToken);
    const runs = [];
    for (const n of tokens.map((cell) => number[cell])) {
      const run = runs.at(-1);
      if (run?.at(-1) === n - 1) run[1] = n;
      else runs.push([n]);
    }
    const parts = [];
    if (tokens.length) {
      const texts = runs.map((run) => run.join("\u2013\u2060"));
      parts.push(`${count(tokens.length, "token")}: ${texts.join(", ")}`);
    }
    const empty = group.length - tokens.length;
    if (empty) parts.push(count(empty, "empty cell"));
    return parts.join(", and ") || "nothing";
  }

  function sentence(cell, step, without) {
    const { inWindow, seen, apart } = company(cell, step);
    const who = `${number[cell]} (row ${row(cell)}, column ${column(cell)})`;
    const sees = `Token ${who} sees ${list(seen)}.`;
    if (step.window === step.sees) return sees;
    if (!without) return `${sees} In its window the mask hides ${list(apart)}.`;
    const all =
      `Without the mask, token ${who} sees ${list(inWindow)}. ` +
      `The mask would hide ${list(apart)}.`;
    const away = (other) =>
      [row, column].map((axis) => Math.abs(axis(other) - axis(cell)));
    const far = (other) => Math.hypot(...away(other));
    const [last] = apart.filter(isToken).sort((a, b) => far(b) - far(a));
    if (last === undefined) return all;
    const [down, across] = away(last);
    return (
      `${all} The farthest of them, token ${number[last]}, is ` +
      `${count(down, "row")} and ${count(across, "column")} away on the map.`
    );
  }

  // The longest text keeps the room: nothing moves when it changes.
  function reserve(box, texts) {
    box.querySelector(".longest")?.remove(); // that of a saved page
    const copy = document.createElement("p");
    copy.className = "longest";
    copy.setAttribute("aria-hidden", true);
    copy.textContent = texts.reduce((a, b) => (b.length > a.length ? b : a));
    box.append(copy);
  }

  reserve(find(".now"), steps.map((step) => step.text));
  reserve(
    find(".said"),
    steps.flatMap((step) =>
      [...number.keys()]
        .filter(isToken)
        .flatMap((cell) => [false, true].map((w) => sentence(cell, step, w))),
    ),
  );

  // --- What is seen ------------------------------------------------------

  // Each pair of cells in the window, in the order of the mask.
  function drawPairs({ inWindow }, step, without) {
    const [place, sees] = [tables[step.place], tables[step.sees]];
    const order = [...inWindow].sort((a, b) => place[a] - place[b]);
    const canvas = find("canvas");
    canvas.width = canvas.height = order.length;
    const pen = canvas.getContext("2d");
    order.forEach((query, y) => {
      order.forEach((key, x) => {
        const apart = sees[query] !== sees[key];
        if (apart && !without) return;
        pen.fillStyle = apart ? "#D55E00" : "#0072B2";
        pen.fillRect(x, y, 1, 1);
      });
    });
    const frame = find(".one").style;
    frame.top = `${(100 * order.indexOf(looks)) / order.length}%`;
    frame.height = `${100 / order.length}%`;
  }

  function write(selector, text) {
    const paragraph = find(selector);
    if (paragraph.textContent !== text) paragraph.textContent = text;
  }

  function draw() {
    const step = steps[now];
    const masked = step.window !== step.sees;
    const without = masked && bare;
    const all = company(looks, step);
    const marks = {
      looks: [looks],
      seen: all.seen,
      barred: without ? [] : all.apart,
      leaks: without ? all.apart : [],
    };
    cells.forEach((span, cell) => {
      const place = tables[step.place][cell];
      span.style.setProperty("--y", row(place));
      span.style.setProperty("--x", column(place));
      for (const [mark, marked] of Object.entries(marks)) {
        span.classList.toggle(mark, marked.includes(cell));
      }
    });
    stage.classList.toggle("padded", step.padded);
    find(".lines").setAttribute("d", step.lines);
    find(".dashes").setAttribute("d", without ? "" : step.dashes);
    find("select").value = now;
    find(".back").setAttribute("aria-disabled", now === 0);
    find(".next").setAttribute("aria-disabled", now === steps.length - 1);
    find("input").disabled = !masked;
    drawPairs(all, step, without);
    write(".now p", step.text);
    write(".said p", sentence(looks, step, without));
  }

  // --- Choices -----------------------------------------------------------

  function go(i) {
    now = Math.max(0, Math.min(steps.length - 1, i));
    draw();
  }

  function choose(cell) {
    if (!isToken(cell)) return;
    looks = cell;
    draw();
  }

  // Run what belongs to a key, if there is something.
  function answer(event, keys) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (!Object.hasOwn(keys, event.key)) return;
    keys[event.key]();
    event.preventDefault();
  }

  find(".back").onclick = () => go(now - 1);
  find(".next").onclick = () => go(now + 1);
  find("select").onchange = (event) => go(+event.target.value);
  find(".steps").onkeydown = (event) =>
    answer(event, {
      ArrowLeft: () => go(now - 1),
      ArrowRight: () => go(now + 1),
      Home: () => go(0),
      End: () => go(steps.length - 1),
    });
  find("input").onchange = (event) => {
    bare = event.target.checked;
    draw();
  };
  cells.forEach((span, cell) => {
    span.onclick = () => choose(cell);
  });

  // To the next token in sight, or to the last one, across empty cells.
  function move(down, right, toLast = false) {
    const place = tables[steps[now].place];
    let [y, x] = [row(place[looks]) + down, column(place[looks]) + right];
    let target = looks;
    while (y >= 0 && y < rows && x >= 0 && x < columns) {
      const cell = place.indexOf(y * columns + x);
      if (isToken(cell)) target = cell;
      if (isToken(cell) && !toLast) break;
      [y, x] = [y + down, x + right];
    }
    choose(target);
  }

  stage.onkeydown = (event) =>
    answer(event, {
      ArrowUp: () => move(-1, 0),
      ArrowDown: () => move(1, 0),
      ArrowLeft: () => move(0, -1),
      ArrowRight: () => move(0, 1),
      Home: () => move(0, -1, true),
      End: () => move(0, 1, true),
    });
  bare = find("input").checked; // a browser may remember it
  draw();
})
