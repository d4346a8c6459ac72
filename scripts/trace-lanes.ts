/** Reads the trace of an update for a picture: lanes of spans, and blocks that a pixel can show. */
import { spansOf, type TimelineSpan, timelineRows, type Trace } from '@ckpt/core/update/trace'

/** What is drawn as one rectangle: a span, or spans that a pixel cannot tell apart. */
export interface Block extends TimelineSpan {
  /** Of the time between begin and end. */
  readonly busyMs: number
}

export interface Lane {
  /** `rank 0`. */
  readonly group: string
  /** `h2d`. */
  readonly name: string
  /** Ascending. */
  readonly spans: readonly TimelineSpan[]
}

/** Its times are since the first span. */
export interface TracePicture {
  readonly title: string | null
  readonly lanes: readonly Lane[]
  readonly endMs: number
}

const JOINED_PIXELS = 3

/** The lanes that have spans, in the order of the trace. @throws Error when it is no trace or has no span */
export function readTrace(text: string): TracePicture {
  const { trace, title } = parse(text)
  const rows = timelineRows(trace).filter(({ spans }) => spans.length > 0)
  const startMs = rows.reduce(
    (least, { spans }) => spans.reduce((a, b) => Math.min(a, b), least),
    Infinity,
  )
  const lanes = rows.map((row) => {
    const { group, name } = row
    const spans = spansOf({ ...row, spans: row.spans.map((ms) => ms - startMs) })
    return { group, name, spans: spans.sort((a, b) => a.beginMs - b.beginMs) }
  })
  if (lanes.length === 0) throw new Error('the trace has no spans: there is nothing to draw')
  const ends = lanes.flatMap(({ spans }) => spans.map((span) => span.endMs))
  const endMs = ends.reduce((last, end) => Math.max(last, end), 0)
  return { title, lanes, endMs }
}

function parse(text: string): { trace: Trace; title: string | null } {
  const trace = JSON.parse(text) as (Trace & { otherData?: { title?: unknown } }) | null
  const events: unknown = trace?.traceEvents
  if (
    !Array.isArray(events) ||
    events.some((event) => typeof event !== 'object' || event === null)
  ) {
    throw new Error('this is no Chrome trace: its traceEvents are no list of events')
  }
  for (const span of events.filter(({ ph }) => ph === 'X')) {
    for (const field of ['ts', 'dur']) checkTime(span[field], field)
  }
  const title = trace?.otherData?.title
  return { trace: trace as Trace, title: typeof title === 'string' ? title : null }
}

function checkTime(us: unknown, field: string): void {
  if (typeof us === 'number' && Number.isFinite(us) && us >= 0) return
  throw new Error(`the ${field} of a span is ${JSON.stringify(us)}: microseconds are wanted`)
}

/**
 * Neighbours of one name that are less than a pixel apart are one block, as long as it is at most three pixels wide: an update of
 * many buckets has more spans than the picture has pixels, and where the gaps grow is still to be seen.
 */
export function blocksOf(spans: readonly TimelineSpan[], pixelMs: number): Block[] {
  const blocks: Block[] = []
  for (const { name, beginMs, endMs } of spans) {
    const last = blocks.at(-1)
    const isNear = last !== undefined && last.name === name && beginMs - last.endMs < pixelMs
    if (isNear && endMs - last.beginMs <= JOINED_PIXELS * pixelMs) {
      const busy = last.busyMs + Math.max(0, endMs - Math.max(beginMs, last.endMs))
      blocks[blocks.length - 1] = { ...last, endMs: Math.max(last.endMs, endMs), busyMs: busy }
    } else {
      blocks.push({ name, beginMs, endMs, busyMs: endMs - beginMs })
    }
  }
  return blocks
}

/** Milliseconds that the spans cover; they may overlap. */
export function busyMs(spans: readonly TimelineSpan[]): number {
  let lastMs = Number.NEGATIVE_INFINITY
  return spans.reduce((sum, { beginMs, endMs }) => {
    const fresh = Math.max(0, endMs - Math.max(beginMs, lastMs))
    lastMs = Math.max(lastMs, endMs)
    return sum + fresh
  }, 0)
}
