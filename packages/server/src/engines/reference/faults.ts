import { CkptError } from '@ckpt/core/api/errors'
import type { UpdateWay } from './way.ts'

/** Where a fault strikes: `bucket` is a number K (the first list is 0), the others are the names of the place. */
type FaultPlace = 'bucket' | 'open' | 'post' | 'pause' | 'flush'

interface FaultKind {
  readonly kind: string
  readonly place: FaultPlace
  /** `engine`: the whole engine; `rank`: one rank, the last one unless `:rank=R` is appended. */
  readonly strikes: 'engine' | 'rank'
  readonly does: string
  /** It strikes direct updates only, as those with `:direct` do. */
  readonly direct?: true
}

/** Every fault that `--fault` takes, as `KIND@PLACE`. */
export const FAULTS: readonly FaultKind[] = [
  {
    kind: 'error',
    place: 'bucket',
    strikes: 'rank',
    does: 'fails on list K and replies as its dialect does',
  },
  {
    kind: 'hang',
    place: 'bucket',
    strikes: 'rank',
    does: 'never replies to list K; leaves when the request times out',
  },
  {
    kind: 'close',
    place: 'bucket',
    strikes: 'rank',
    does: 'closes its socket at list K; the request fails',
  },
  {
    kind: 'hold',
    place: 'bucket',
    strikes: 'rank',
    does: 'replies to list K when POST /v1/faults has come, and goes on',
  },
  { kind: 'exit', place: 'bucket', strikes: 'rank', does: 'the process exits at list K' },
  {
    kind: 'http-500',
    place: 'open',
    strikes: 'engine',
    does: 'answers 500 at once, no worker connects',
  },
  {
    kind: 'http-404',
    place: 'open',
    strikes: 'engine',
    does: 'answers 404 at once, no worker connects',
  },
  { kind: 'refuse-handle', place: 'open', strikes: 'rank', does: 'cannot open the IPC handle' },
  {
    kind: 'moved',
    place: 'open',
    strikes: 'rank',
    does: 'its parameters move between look and begin of a direct update, which it refuses',
    direct: true,
  },
  { kind: 'hang', place: 'open', strikes: 'engine', does: 'takes the request, no worker connects' },
  {
    kind: 'hold',
    place: 'open',
    strikes: 'engine',
    does: 'takes the request, and goes on when POST /v1/faults has come',
  },
  {
    kind: 'missing-device',
    place: 'open',
    strikes: 'rank',
    does: 'does not find its key in the map, never connects',
  },
  {
    kind: 'error',
    place: 'post',
    strikes: 'rank',
    does: 'its post hook raises: no reply, the request fails',
  },
  {
    kind: 'hang',
    place: 'post',
    strikes: 'rank',
    does: 'its post hook hangs; leaves when the request times out',
  },
  {
    kind: 'hold',
    place: 'post',
    strikes: 'rank',
    does: 'its post hook goes on when POST /v1/faults has come',
  },
  {
    kind: 'hang',
    place: 'pause',
    strikes: 'engine',
    does: 'a pause with mode=wait never returns, one with mode=abort does',
  },
  {
    kind: 'hold',
    place: 'flush',
    strikes: 'engine',
    does: 'answers POST /reset_prefix_cache when POST /v1/faults has come',
  },
]

export interface Fault {
  /** As in {@link FAULTS}. */
  readonly kind: string
  readonly place: FaultPlace
  /** Of a `bucket` fault. */
  readonly bucket: number | null
  /** Of a `rank` fault: null is the last rank. */
  readonly rank: number | null
  /** Only the next update. */
  readonly once: boolean
  /** Only direct updates. */
  readonly direct: boolean
}

const NOTES = [
  'of a direct update, K=0 is its begin (error: refuses it) and K=1 while the daemon copies (not error); error@post refuses its end',
  'POST /v1/faults {"faults": [...]} puts others in place of these, and whatever holds goes on',
  'append :once for the next update only, :direct for direct updates only, :rank=R for another rank than the last',
]

/** The faults as text, one a line: for `--help` and for the refusal of an unknown one. */
export function describeFaults(): string {
  const lines = FAULTS.map(({ kind, place, does }) => {
    const name = `${kind}@${place === 'bucket' ? 'K' : place}`
    return `  ${name.padEnd(20)} ${does}`
  })
  return [...lines, ...NOTES.map((note) => `  ${note}`)].join('\n')
}

/** Parses `KIND@PLACE[:once][:direct][:rank=R]`. Throws `bad_request` with the list of all kinds. */
export function parseFault(text: string, size: number): Fault {
  const match = /^([a-z0-9-]+)@([a-z]+|\d{1,9})((?::once|:direct|:rank=\d{1,4})*)$/.exec(text)
  const bucket = match?.[2] !== undefined && /^\d+$/.test(match[2]) ? Number(match[2]) : null
  const place = bucket === null ? match?.[2] : 'bucket'
  const known = FAULTS.find((fault) => fault.kind === match?.[1] && fault.place === place)
  if (known === undefined) {
    throw new CkptError('bad_request', `unknown fault "${text}"; there are\n${describeFaults()}`)
  }
  const rankText = /:rank=(\d+)/.exec(match?.[3] ?? '')?.[1]
  const rank = rankText === undefined ? null : Number(rankText)
  if (rank !== null && (known.strikes === 'engine' || rank >= size)) {
    throw new CkptError('bad_request', `the fault "${text}" cannot strike rank ${rank}`)
  }
  const once = match?.[3]?.includes(':once') ?? false
  const direct = known.direct ?? match?.[3]?.includes(':direct') ?? false
  return { kind: known.kind, place: known.place, bucket, rank, once, direct }
}

/** The faults of an engine; those that apply once are used up by the update that takes them. */
export class Faults {
  readonly #size: number
  #armed: Fault[]

  constructor(texts: readonly string[], size: number) {
    this.#size = size
    this.#armed = texts.map((text) => parseFault(text, size))
  }

  /** From now on these. @throws CkptError `bad_request` */
  arm(texts: readonly string[]): void {
    this.#armed = texts.map((text) => parseFault(text, this.#size))
  }

  /** What applies to an update that starts now. */
  take(way: UpdateWay): Fault[] {
    const applies = (fault: Fault) =>
      fault.place !== 'pause' && fault.place !== 'flush' && (way === 'direct' || !fault.direct)
    const taken = this.#armed.filter(applies)
    this.#armed = this.#armed.filter((fault) => !applies(fault) || !fault.once)
    return taken
  }

  /** Whether a request of this place, which belongs to no update, is struck now. */
  takeOf(place: 'pause' | 'flush'): boolean {
    const struck = this.#armed.some((fault) => fault.place === place)
    this.#armed = this.#armed.filter((fault) => fault.place !== place || !fault.once)
    return struck
  }

  /** Those of `faults` that strike this rank. */
  ofRank(faults: readonly Fault[], rank: number): Fault[] {
    return faults.filter((fault) => (fault.rank ?? this.#size - 1) === rank)
  }
}

/** Whether one of the faults is of this kind and strikes here. */
export function strikes(
  faults: readonly Fault[],
  kind: string,
  place: FaultPlace | number,
): boolean {
  return faults.some(
    (fault) =>
      fault.kind === kind &&
      (typeof place === 'number' ? fault.bucket === place : fault.place === place),
  )
}
