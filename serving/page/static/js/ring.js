// The last five minutes in columns, one value per name and moment; what nobody knows at a moment is null.

const KEPT_S = 300;

export class Ring {
  constructor(names) {
    this.at = [];
    this.columns = Object.fromEntries(names.map((name) => [name, []]));
  }

  /** Put a sample at the end; one that is not newer than the last is left out. */
  add(at, values) {
    if (this.at.length && at <= this.at.at(-1)) return;
    this.at.push(at);
    for (const [name, column] of Object.entries(this.columns)) column.push(values[name] ?? null);
    let old = 0;
    while (this.at[old] < at - KEPT_S) old += 1;
    if (old) for (const column of [this.at, ...Object.values(this.columns)]) column.splice(0, old);
  }

  /** The newest value that is known. */
  last(name) {
    return this.columns[name].findLast((value) => value !== null) ?? null;
  }

  most(name) {
    return this.columns[name].reduce((most, value) => (value !== null && (most === null || value > most) ? value : most), null);
  }

  /** By how much a growing count grew per second, over `overS` at most; null before there are two samples. */
  growth(name, overS) {
    const known = this.at.map((at, place) => [at, this.columns[name][place]]).filter(([, value]) => value !== null);
    if (known.length < 2) return null;
    const [end, last] = known.at(-1);
    const [start, first] = known.find(([at]) => at >= end - overS);
    return end > start ? Math.max(0, last - first) / (end - start) : null;
  }
}
