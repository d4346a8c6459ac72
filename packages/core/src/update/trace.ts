import { assert } from '../checkpoint/assert.ts'

/** One row of an update's timeline. */
export interface TimelineRow {
  /** What the row is part of: `update`, `rank 0`. */
  readonly group: string
  /** `h2d`. */
  readonly name: string
  /** Pairs of begin and end, ascending, in milliseconds of one clock. */
  readonly spans: Float64Array
  /** What each span is called; absent: all like the row. */
  readonly labels?: readonly string[]
}

/** Of a row; milliseconds of its clock. */
export interface TimelineSpan {
  readonly name: string
  readonly beginMs: number
  readonly endMs: number
}

/**
 * An event of the Trace Event Format, which Perfetto and `chrome://tracing` show: `M` names a group
 * or a row, `X` is a span; times in microseconds.
 */
export type TraceEvent =
  | {
      ph: 'M'
      name: 'process_name' | 'thread_name'
      pid: number
      tid: number
      args: { name: string }
    }
  | { ph: 'X'; name: string; cat: string; pid: number; tid: number; ts: number; dur: number }

export interface Trace {
  displayTimeUnit: 'ms'
  traceEvents: TraceEvent[]
}

/** The timeline as a trace that begins at 0. Groups and rows keep their order. */
export function chromeTrace(rows: readonly TimelineRow[]): Trace {
  const startMs = rows.reduce((least, { spans }) => Math.min(least, spans[0] ?? least), Infinity)
  const groups = new Map<string, number>()
  const traceEvents: TraceEvent[] = []
  rows.forEach((timeline, row) => {
    const { group, name } = timeline
    let pid = groups.get(group)
    if (pid === undefined) {
      pid = groups.size + 1
      groups.set(group, pid)
      traceEvents.push({ ph: 'M', name: 'process_name', pid, tid: 0, args: { name: group } })
    }
    const tid = row + 1
    traceEvents.push({ ph: 'M', name: 'thread_name', pid, tid, args: { name } })
    for (const { name: label, beginMs, endMs } of spansOf(timeline)) {
      const ts = micros(beginMs - startMs)
      // of the rounded ends, so that spans that touch still do
      const dur = tenths(micros(endMs - startMs) - ts)
      traceEvents.push({ ph: 'X', name: label, cat: group, pid, tid, ts, dur })
    }
  })
  return { displayTimeUnit: 'ms', traceEvents }
}

/**
 * The rows of which {@link chromeTrace} has made a trace, on the clock of its events.
 *
 * @throws AssertionError when the row of a span has no name before it
 */
export function timelineRows({ traceEvents }: Trace): TimelineRow[] {
  const groups = new Map<number, string>()
  const rows = new Map<string, { pid: number; name: string; spans: number[]; labels: string[] }>()
  for (const event of traceEvents) {
    const { pid, tid } = event
    const key = `${pid} ${tid}`
    if (event.ph === 'X') {
      const row = rows.get(key)
      assert(row !== undefined, `a span is in row ${tid}, which has no name before it`)
      // in tenths of a microsecond, whose sum is not exact otherwise
      row.spans.push(event.ts / 1000, tenths(event.ts + event.dur) / 1000)
      row.labels.push(event.name)
    } else if (event.name === 'process_name') groups.set(pid, event.args.name)
    else if (event.name === 'thread_name') {
      rows.set(key, { pid, name: event.args.name, spans: [], labels: [] })
    }
  }
  return Array.from(rows.values(), ({ pid, name, spans, labels }) => {
    const row = { group: groups.get(pid) ?? '', name, spans: Float64Array.from(spans) }
    return labels.every((label) => label === name) ? row : { ...row, labels }
  })
}

export function spansOf({ name, spans, labels }: TimelineRow): TimelineSpan[] {
  return Array.from({ length: spans.length >> 1 }, (_, i) => ({
    name: labels?.[i] ?? name,
    beginMs: spans[2 * i] as number,
    endMs: spans[2 * i + 1] as number,
  }))
}

/** Rounded to a tenth. */
function micros(ms: number): number {
  return tenths(ms * 1000)
}

function tenths(us: number): number {
  return Math.round(us * 10) / 10
}
