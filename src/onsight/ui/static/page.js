(labels) => {
  "use strict";
  const pad = (number) => String(number).padStart(2, "0");

  window.onsight = {
    // Write `text` as a file on the visitor's side.
    keep(beginning, ending, text) {
      const now = new Date();
      const date = `${now.getFullYear()}${pad(now.getMonth() + 1)}${pad(now.getDate())}`;
      const time = `${pad(now.getHours())}${pad(now.getMinutes())}${pad(now.getSeconds())}`;
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text ?? ""], { type: "text/plain;charset=utf-8" }));
      link.download = `${beginning}${date}_${time}${ending}`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    },
  };

  // Some of Gradio's own labels are in English in every language.
  const ours = new Map(Object.entries(labels));
  const translate = (root) => {
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT);
    for (let node = root; node; node = walker.nextNode()) {
      if (node.nodeType === Node.TEXT_NODE) {
        const text = ours.get(node.data.trim());
        if (text && text !== node.data && !node.parentElement?.closest(".message, table")) node.data = text;
      } else if (node.nodeType === Node.ELEMENT_NODE) {
        for (const name of ["aria-label", "title"]) {
          const text = ours.get(node.getAttribute(name));
          if (text && text !== node.getAttribute(name)) node.setAttribute(name, text);
        }
      }
    }
  };
  translate(document.body);
  new MutationObserver((changes) => {
    for (const change of changes) {
      if (change.type === "childList") change.addedNodes.forEach(translate);
      else translate(change.target);
    }
  }).observe(document.body, {
    subtree: true,
    childList: true,
    characterData: true,
    attributes: true,
    attributeFilter: ["aria-label", "title"],
  });

  // A box drawn on the region tab's picture goes into the field beside it, in pixels of the upright picture.
  const pictureIn = (target) => target instanceof Element && target.closest("#region-picture") && target.closest("img");
  let drag = null;

  // A picture may be shown smaller than its element: `object-fit` leaves room at two of its sides.
  const shownPart = (img) => {
    const rect = img.getBoundingClientRect();
    const scale = Math.min(rect.width / img.naturalWidth, rect.height / img.naturalHeight);
    const width = img.naturalWidth * scale;
    const height = img.naturalHeight * scale;
    return { left: rect.left + (rect.width - width) / 2, top: rect.top + (rect.height - height) / 2, width, height, scale };
  };
  const within = (value, most) => Math.min(Math.max(value, 0), most);
  const place = (event, part) => [
    within(event.clientX - part.left, part.width),
    within(event.clientY - part.top, part.height),
  ];

  const show = () => {
    const [x1, y1] = [Math.min(drag.from[0], drag.to[0]), Math.min(drag.from[1], drag.to[1])];
    const [x2, y2] = [Math.max(drag.from[0], drag.to[0]), Math.max(drag.from[1], drag.to[1])];
    Object.assign(drag.frame.style, {
      left: `${drag.part.left + x1}px`,
      top: `${drag.part.top + y1}px`,
      width: `${x2 - x1}px`,
      height: `${y2 - y1}px`,
    });
    return [x1, y1, x2, y2].map((edge) => Math.round(edge / drag.part.scale));
  };

  const write = (text) => {
    const field = document.querySelector("#region-box input, #region-box textarea");
    const owner = field instanceof HTMLTextAreaElement ? HTMLTextAreaElement : HTMLInputElement;
    Object.getOwnPropertyDescriptor(owner.prototype, "value").set.call(field, text);
    field.dispatchEvent(new Event("input", { bubbles: true }));
  };

  document.addEventListener("pointerdown", (event) => {
    const img = event.button === 0 && pictureIn(event.target);
    if (!img) return;
    event.preventDefault();
    document.querySelectorAll(".drawn-box").forEach((old) => old.remove());
    const part = shownPart(img);
    const frame = document.createElement("div");
    frame.className = "drawn-box";
    document.body.append(frame);
    drag = { part, frame, from: place(event, part), to: place(event, part) };
  });
  document.addEventListener("pointermove", (event) => {
    if (!drag) return;
    drag.to = place(event, drag.part);
    show();
  });
  document.addEventListener("pointerup", () => {
    if (!drag) return;
    const [x1, y1, x2, y2] = show();
    if (x2 - x1 > 1 && y2 - y1 > 1) write(`${x1},${y1},${x2},${y2}`);
    else drag.frame.remove();
    const { frame } = drag;
    drag = null;
    // The frame stands on the window, not on the picture: it goes as soon as anything moves under it.
    const away = () => frame.remove();
    for (const kind of ["scroll", "resize", "keydown", "click"]) {
      setTimeout(() => window.addEventListener(kind, away, { once: true, capture: true }), 300);
    }
  });
  document.addEventListener("dragstart", (event) => {
    if (pictureIn(event.target)) event.preventDefault();
  });
}
