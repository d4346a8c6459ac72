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
  rows.forEach(({ group, name, spans, labels }, row) => {
    let pid = groups.get(group)
    if (pid === undefined) {
      pid = groups.size + 1
      groups.set(group, pid)
      traceEvents.push({ ph: 'M', name: 'process_name', pid, tid: 0, args: { name: group } })
    }
    const tid = row + 1
    traceEvents.push({ ph: 'M', name: 'thread_name', pid, tid, args: { name } })
    for (let i = 0; i + 1 < spans.length; i += 2) {
      const [begin, end] = [spans[i] as number, spans[i + 1] as number]
      const ts = micros(begin - startMs)
      // of the rounded ends, so that spans that touch still do
      const dur = tenths(micros(end - startMs) - ts)
      traceEvents.push({ ph: 'X', name: labels?.[i / 2] ?? name, cat: group, pid, tid, ts, dur })
    }
  })
  return { displayTimeUnit: 'ms', traceEvents }
}

/** Rounded to a tenth. */
function micros(ms: number): number {
  return tenths(ms * 1000)
}

function tenths(us: number): number {
  return Math.round(us * 10) / 10
}
