/** Reads the trace of an update for a picture: lanes of spans, and blocks that a pixel can show. */

/** Times in milliseconds since the first span. */
export interface Span {
  readonly name: string
  readonly beginMs: number
  readonly endMs: number
}

/** What is drawn as one rectangle: a span, or spans that a pixel cannot tell apart. */
export interface Block extends Span {
  /** Of the time between begin and end. */
  readonly busyMs: number
}

export interface Lane {
  /** `rank 0`. */
  readonly group: string
  /** `h2d`. */
  readonly name: string
  /** Ascending. */
  readonly spans: readonly Span[]
}

export interface TracePicture {
  readonly title: string | null
  readonly lanes: readonly Lane[]
  readonly endMs: number
}

const JOINED_PIXELS = 3

/** The lanes that have spans, in the order of the trace. @throws Error when it is no trace or has no span */
export function readTrace(text: string): TracePicture {
  const { events, title } = parse(text)
  const groups = new Map<number, string>()
  const names = new Map<string, { group: number; name: string; spans: Span[] }>()
  let beginUs = Number.POSITIVE_INFINITY
  for (const event of events) {
    if (event.ph === 'X') beginUs = Math.min(beginUs, timeOf(event, 'ts'))
  }
  for (const event of events) {
    const [pid, key] = [Number(event.pid), `${event.pid} ${event.tid}`]
    const named = (event.args as { name?: unknown } | undefined)?.name
    if (event.ph === 'M' && event.name === 'process_name') groups.set(pid, String(named))
    if (event.ph === 'M' && event.name === 'thread_name') {
      names.set(key, { group: pid, name: String(named), spans: [] })
    }
    if (event.ph !== 'X') continue
    const lane = names.get(key)
    if (lane === undefined) throw new Error(`a span is in row ${key}, which has no name before it`)
    const beginMs = (timeOf(event, 'ts') - beginUs) / 1000
    lane.spans.push({
      name: String(event.name),
      beginMs,
      endMs: beginMs + timeOf(event, 'dur') / 1000,
    })
  }
  const lanes = [...names.values()]
    .filter(({ spans }) => spans.length > 0)
    .map(({ group, name, spans }) => {
      return {
        group: groups.get(group) ?? '',
        name,
        spans: spans.sort((a, b) => a.beginMs - b.beginMs),
      }
    })
  if (lanes.length === 0) throw new Error('the trace has no spans: there is nothing to draw')
  const ends = lanes.flatMap(({ spans }) => spans.map((span) => span.endMs))
  const endMs = ends.reduce((last, end) => Math.max(last, end), 0)
  return { title, lanes, endMs }
}

function parse(text: string): { events: Record<string, unknown>[]; title: string | null } {
  const trace = JSON.parse(text) as {
    traceEvents?: unknown
    otherData?: { title?: unknown }
  } | null
  const events = trace?.traceEvents
  if (
    !Array.isArray(events) ||
    events.some((event) => typeof event !== 'object' || event === null)
  ) {
    throw new Error('this is no Chrome trace: its traceEvents are no list of events')
  }
  const title = trace?.otherData?.title
  return { events, title: typeof title === 'string' ? title : null }
}

/** Microseconds. */
function timeOf(event: Record<string, unknown>, field: 'ts' | 'dur'): number {
  const time = event[field]
  if (typeof time === 'number' && Number.isFinite(time) && time >= 0) return time
  throw new Error(`the ${field} of a span is ${JSON.stringify(time)}: microseconds are wanted`)
}

/**
 * Neighbours of one name that are less than a pixel apart are one block, as long as it is at most three pixels wide: an update of
 * many buckets has more spans than the picture has pixels, and where the gaps grow is still to be seen.
 */
export function blocksOf(spans: readonly Span[], pixelMs: number): Block[] {
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
export function busyMs(spans: readonly Span[]): number {
  let lastMs = Number.NEGATIVE_INFINITY
  return spans.reduce((sum, { beginMs, endMs }) => {
    const fresh = Math.max(0, endMs - Math.max(beginMs, lastMs))
    lastMs = Math.max(lastMs, endMs)
    return sum + fresh
  }, 0)
}
