import type { EngineReport, Phase, TimelineRow, UpdateReport } from '@ckpt/core'
import { unionSeconds } from '../rank/intervals.ts'
import { clockMs } from '../clock.ts'
import type { HeldVersion, SourceReading } from '../types.ts'
import type { UpdateSpec } from './spec.ts'
import type { RankTeam } from './team.ts'

const PHASES = ['gather', 'plan', 'open', 'transfer', 'release', 'post', 'pause', 'resume'] as const
const GIGA = 1e9

/** Seconds that an update spends in its phases; a phase can be entered more than once. */
export class PhaseClock {
  readonly startMs: number
  readonly #spans: { phase: Phase; beginMs: number; endMs: number }[] = []
  #phase: Phase | null = null
  #sinceMs: number

  constructor(startMs: number) {
    this.startMs = startMs
    this.#sinceMs = startMs
  }

  get phase(): Phase | null {
    return this.#phase
  }

  enter(phase: Phase | null): void {
    const nowMs = clockMs()
    if (this.#phase !== null) {
      this.#spans.push({ phase: this.#phase, beginMs: this.#sinceMs, endMs: nowMs })
    }
    this.#phase = phase
    this.#sinceMs = nowMs
  }

  /** The phases that are over. */
  get row(): TimelineRow {
    const spans = this.#spans.flatMap(({ beginMs, endMs }) => [beginMs, endMs])
    const labels = this.#spans.map(({ phase }) => phase)
    return { group: 'update', name: 'phases', spans: Float64Array.from(spans), labels }
  }

  get seconds(): UpdateReport['seconds'] {
    const seconds = Object.fromEntries(PHASES.map((phase) => [phase, this.#spentMs(phase) / 1000]))
    const total = (clockMs() - this.startMs) / 1000
    return { total, ...seconds } as UpdateReport['seconds']
  }

  #spentMs(phase: Phase): number {
    const spans = this.#spans.filter((span) => span.phase === phase)
    return spans.reduce((total, { beginMs, endMs }) => total + endMs - beginMs, 0)
  }
}

/** What was copied, and how that was decided. */
export interface Transferred {
  readonly mode: UpdateReport['mode']
  readonly reason: string
  readonly tensors: number
  /** Of the checkpoint. */
  readonly bytes: number
  readonly buckets: number
  readonly ringBytes: number
  readonly bucketBytes: number
  /** Over all links into devices. */
  readonly h2dBytes: number
}

/** What a report is made of. */
export interface ReportParts {
  readonly spec: UpdateSpec
  readonly version: HeldVersion
  readonly transferred: Transferred
  readonly team: RankTeam
  readonly clock: PhaseClock
  /** Reads that went on when the update began. */
  readonly readings: readonly SourceReading[]
  /** Begin and end of reading; empty: the checkpoint was in memory before the update. */
  readonly readSpan: Float64Array
  readonly engines: EngineReport[]
}

/**
 * The report of an update that succeeded. `busy_s` of a stage is the time in which at least one rank had such work; `gb_per_s` is
 * bytes over the time in which any stage had work, so waiting for an engine to begin is not counted.
 */
export function makeReport(parts: ReportParts): UpdateReport {
  const { spec, version, transferred, team, clock, readings, readSpan, engines } = parts
  const { mode, bytes } = transferred
  const remoteBytes = mode === 'direct' ? team.fetchedBytes : bytesAway(version, team)
  const { stages, turnaround } = team
  const of = (name: 'h2d' | 'broadcast' | 'reload') => unionSeconds(stages.map((one) => one[name]))
  // of the update, so what was read before it does not count
  const reading = readSpan.map((ms) => Math.max(ms, clock.startMs))
  const busy = unionSeconds([
    reading,
    ...stages.flatMap((one) => [one.h2d, one.broadcast, one.reload]),
  ])
  return {
    update_id: spec.id,
    checkpoint: spec.checkpoint,
    version: version.version,
    mode,
    mode_reason: transferred.reason,
    ranks: spec.ranks.length,
    tensors: transferred.tensors,
    bytes,
    buckets: transferred.buckets,
    ring_bytes: transferred.ringBytes,
    bucket_bytes: transferred.bucketBytes,
    gb_per_s: busy === 0 ? 0 : bytes / busy / GIGA,
    seconds: clock.seconds,
    stages: {
      ...(readings.length === 0 ? {} : { read: readStage(readings, readSpan) }),
      h2d: { busy_s: of('h2d'), bytes: transferred.h2dBytes },
      broadcast: {
        busy_s: of('broadcast'),
        bytes: mode === 'direct' ? team.takenBytes : spec.ranks.length > 1 ? bytes : 0,
      },
      reload: {
        busy_s: of('reload'),
        bytes: mode !== 'direct' && (engines.length > 0 || of('reload') > 0) ? bytes : 0,
      },
    },
    ...(turnaround === null ? {} : { turnaround }),
    ...(remoteBytes === 0 ? {} : { p2p: { bytes: remoteBytes, transports: team.readBy } }),
    device_bytes: team.deviceBytes,
    engines,
  }
}

/** What lies on hosts without a rank in the update. */
function bytesAway({ table, ownerNodes }: HeldVersion, { links }: RankTeam): number {
  const here = new Set(links.map(({ node }) => node))
  const away = ownerNodes.map((node) => !here.has(node))
  if (!away.includes(true)) return 0
  return table.bytes.reduce((sum, size, i) => sum + (away[table.owners[i] as number] ? size : 0), 0)
}

/** All of it, also what was read before the update began. */
function readStage(readings: readonly SourceReading[], span: Float64Array) {
  const bytes = readings.reduce((total, reading) => total + reading.bytes, 0)
  return { busy_s: unionSeconds([span]), bytes }
}
