// Which texts of a page are too faint to be read, and which controls have no name: for tests.

const numbers = (colour) => {
  const found = colour.match(/[\d.]+/g)?.map(Number) ?? [0, 0, 0, 0];
  return found.length < 4 ? [...found, 1] : found;
};
const over = (above, below) => [0, 1, 2].map((k) => above[k] * above[3] + below[k] * (1 - above[3])).concat(1);

// Relative luminance, WCAG 2.
function luminance(colour) {
  const [r, g, b] = colour.slice(0, 3).map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function ground(element) {
  const layers = [];
  for (let each = element; each; each = each.parentElement) layers.unshift(numbers(getComputedStyle(each).backgroundColor));
  return layers.reduce((below, layer) => over(layer, below), [255, 255, 255, 1]);
}

function faint() {
  const found = [];
  for (const each of document.querySelectorAll("body *")) {
    const shown = each.checkVisibility({ opacityProperty: true, visibilityProperty: true });
    if (!shown || each.closest("svg, option, [disabled]") || each.getBoundingClientRect().width < 2) continue;
    const text = [...each.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => node.data.trim()).join("");
    if (!text) continue;
    const style = getComputedStyle(each), below = ground(each), above = over(numbers(style.color), below);
    const [light, dark] = [luminance(above), luminance(below)].sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) found.push(`${ratio.toFixed(2)}: ${text.slice(0, 40)}, ${style.color} on ${below}`);
  }
  return found;
}

function nameless() {
  const controls = [...document.querySelectorAll("input, select, textarea, button, canvas, [role=tab]")];
  return controls.filter((each) => {
    if (!each.checkVisibility() || each.closest("[aria-hidden=true]")) return false;
    const by = (each.getAttribute("aria-labelledby") ?? "").split(" ").map((id) => document.getElementById(id)?.textContent ?? "");
    const labels = [...(each.labels ?? [])].map((label) => label.textContent);
    const own = each.tagName === "BUTTON" ? each.textContent : "";
    return ![...by, ...labels, each.getAttribute("aria-label") ?? "", each.title ?? "", own].join("").trim();
  }).map((each) => each.outerHTML.slice(0, 200));
}
