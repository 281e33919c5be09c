// Numbers and times in words.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

export const DASH = "–";
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

export const count = (value) => (known(value) ? whole.format(value) : DASH);

/** A rate: "0", "0.4", "25.1", "18,204". */
export function rate(value) {
  if (!known(value)) return DASH;
  return value === 0 || value >= 100 ? whole.format(value) : tenth.format(value);
}

/** Milliseconds: "4.2 ms", "131 ms", "2.4 s". */
export function ms(value) {
  if (!known(value)) return DASH;
  if (value < 10 && value !== 0) return `${tenth.format(value)}\u00a0ms`;
  if (value < 1000) return `${whole.format(value)}\u00a0ms`;
  return seconds(value / 1000);
}

/** Seconds: "2.4 s", "41 s", "3 min", "5 h", "9 d". */
export function seconds(value) {
  if (!known(value)) return DASH;
  if (value < 10) return `${tenth.format(value)}\u00a0s`;
  if (value < 99.5) return `${whole.format(value)}\u00a0s`;
  if (value < 5400) return `${whole.format(value / 60)}\u00a0min`;
  if (value < 172800) return `${whole.format(value / 3600)}\u00a0h`;
  return `${whole.format(value / 86400)}\u00a0d`;
}

/** A measure of ranking, 0..1: ".1134". */
export const score = (value) => (known(value) ? value.toFixed(4).replace(/^0/, "") : DASH);

/** A share, 0..1: "0.4%", "64%". */
export function share(value) {
  if (!known(value)) return DASH;
  const hundredths = value * 100;
  return `${hundredths !== 0 && Math.abs(hundredths) < 10 ? hundredths.toFixed(1) : whole.format(hundredths)}%`;
}

/** A change against something, signed: "+2.4%". */
export function change(value, against) {
  if (!known(value) || !known(against) || against === 0) return "";
  const hundredths = (value / against - 1) * 100;
  return `${hundredths < 0 ? "−" : "+"}${Math.abs(hundredths).toFixed(1)}%`;
}

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** An event time: "18 Jan 1998, 09:54" in UTC. */
export function moment(iso) {
  const time = new Date(iso);
  if (Number.isNaN(time.valueOf())) return iso ?? DASH;
  return time.toLocaleString("en-GB", { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit", timeZone: "UTC" });
}

/** Words with event times in them, such as "v3 on 1998-01-18T09:54:00Z", as people write those. */
export const moments = (words) => words.replace(/\d{4}-\d\d-\d\dT[\d:.]+Z/g, moment);

export const clock = (epochS) => new Date(epochS * 1000).toLocaleTimeString("en-GB");
