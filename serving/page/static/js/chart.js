// One chart over time with a readout beside its title: of now, or of the moment pointed at.
/* global uPlot */
import { h, rebuilt, text } from "./dom.js";
import { clock } from "./format.js";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const together = uPlot.sync("time"); // pointing at one chart points at all of them

/**
 * @param title words; `lines` [{name, label, tone, dash, points, fill}], tone a CSS variable; `format` for values;
 * `under` a sentence below; `empty` what to say while there is nothing; `tall`.
 */
export class Chart {
  constructor({ title, lines, format, under = "", empty = "Nothing yet.", tall = false, least = 1, live = true }) {
    Object.assign(this, { title, lines, format, least, live, data: null, plot: null });
    this.readout = h("p", { class: "readout" });
    this.waiting = h("p", { class: "waiting" }, empty);
    this.area = h("div", { class: tall ? "plot tall" : "plot", role: "img", "aria-label": `${title}: ${empty}` }, this.waiting);
    this.under = h("p", { class: "note under" }, under);
    this.element = h("div", { class: "chart" }, h("h3", {}, title), this.readout, this.area, this.under);
    document.addEventListener("themed", () => this.draw(true));
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(this.area);
  }

  size() {
    return { width: Math.max(120, this.area.clientWidth), height: this.area.clientHeight };
  }

  /** @param at epoch s, `columns` one list per line. */
  show(at, columns) {
    this.data = [at, ...columns];
    this.draw(false);
  }

  draw(anew) {
    if (!this.data) return;
    const something = this.data.slice(1).some((column) => column.some((value) => value !== null));
    this.waiting.hidden = something;
    if (!something) return;
    if (anew || !this.plot) {
      this.plot?.destroy();
      this.plot = new uPlot(this.options(), this.data, this.area);
    } else this.plot.setData(this.data);
    this.read(this.plot.cursor.idx);
  }

  /** Write the values of a moment, or of the newest, beside the title. */
  read(place) {
    const at = place ?? this.data[0].length - 1;
    const values = this.lines.map((line, number) => {
      const column = this.data[number + 1];
      const value = place === null || place === undefined ? column.findLast((one) => one !== null) : column[at];
      return [line, value ?? null];
    });
    rebuilt(this.readout, "made", () => [
      h("span", { class: "at" }),
      ...this.lines.map((line) => {
        const key = h("span", { class: "key" }, line.label ? `${line.label} ` : "", h("b"));
        key.style.setProperty("--tone", `var(${line.tone})`);
        return key;
      }),
    ]);
    const [when, ...keys] = this.readout.children;
    text(when, place === null || place === undefined ? "" : this.live ? clock(this.data[0][at]) : this.nameOf(at));
    values.forEach(([, value], number) => text(keys[number].querySelector("b"), this.format(value)));
    const said = values.map(([line, value]) => `${line.label ?? ""} ${this.format(value)}`.trim()).join(", ");
    if (place === null || place === undefined) this.area.setAttribute("aria-label", `${this.title}, now: ${said}`);
  }

  nameOf(place) {
    return clock(this.data[0][place]);
  }

  options() {
    const axis = { stroke: colour("--muted"), font: "12px system-ui", grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
    return {
      ...this.size(),
      padding: [8, 10, 0, 0],
      legend: { show: false },
      cursor: { y: false, sync: this.live ? { key: together.key, setSeries: false } : undefined, drag: { x: false, y: false }, points: { size: 7 } },
      scales: { x: { time: true }, y: { range: (_, low, high) => [Math.min(0, low ?? 0), Math.max(this.least, (high ?? 0) * 1.12)] } },
      axes: [
        { ...axis, grid: { show: false }, space: 80, size: 28, values: (_, times) => times.map((at) => new Date(at * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" })) },
        { ...axis, size: 58, space: 34, values: (_, values) => values.map((value) => this.format(value)) },
      ],
      series: [
        {},
        ...this.lines.map((line) => ({
          stroke: colour(line.tone), width: line.points === "only" ? 0 : 2, dash: line.dash,
          fill: line.fill ? `${colour(line.tone)}22` : undefined, spanGaps: true,
          points: { show: Boolean(line.points), size: line.points === "only" ? 9 : 6, fill: line.points === "only" ? colour("--surface") : colour(line.tone), stroke: colour(line.tone), width: 2 },
        })),
      ],
      hooks: { setCursor: [(plot) => this.read(plot.cursor.idx)] },
    };
  }
}
