import type { EngineReport, Phase, TimelineRow, UpdateReport } from '@ckpt/core'
import { unionSeconds } from '../rank/intervals.ts'
import { clockMs } from '../rank/messages.ts'
import type { HeldVersion } from '../types.ts'
import type { PlannedUpdate } from './plan.ts'
import type { UpdateSpec } from './spec.ts'
import type { RankTeam } from './team.ts'

const PHASES = ['gather', 'plan', 'open', 'transfer', 'release', 'post', 'pause', 'resume'] as const
const GIGA = 1e9

/** Seconds that an update spends in its phases; a phase can be entered more than once. */
export class PhaseClock {
  readonly #startMs: number
  readonly #spentMs = new Map<Phase, number>()
  readonly #spans: { phase: Phase; beginMs: number; endMs: number }[] = []
  #phase: Phase | null = null
  #sinceMs: number

  constructor(startMs: number) {
    this.#startMs = startMs
    this.#sinceMs = startMs
  }

  get phase(): Phase | null {
    return this.#phase
  }

  enter(phase: Phase | null): void {
    const nowMs = clockMs()
    if (this.#phase !== null) {
      const spentMs = this.#spentMs.get(this.#phase) ?? 0
      this.#spentMs.set(this.#phase, spentMs + nowMs - this.#sinceMs)
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
    const seconds = Object.fromEntries(
      PHASES.map((phase) => [phase, (this.#spentMs.get(phase) ?? 0) / 1000]),
    )
    const total = (clockMs() - this.#startMs) / 1000
    return { total, ...seconds } as UpdateReport['seconds']
  }
}

/** What a report is made of. */
export interface ReportParts {
  readonly spec: UpdateSpec
  readonly version: HeldVersion
  readonly planned: PlannedUpdate
  readonly team: RankTeam
  readonly clock: PhaseClock
  /** Reading the checkpoint; null: it was in memory before the update. */
  readonly readSeconds: number | null
  readonly engines: EngineReport[]
}

/**
 * The report of an update that succeeded. `busy_s` of a stage is the time in which at least one rank had such work; `gb_per_s` is
 * bytes over the time in which any stage had work, so waiting for an engine to begin is not counted.
 */
export function makeReport(parts: ReportParts): UpdateReport {
  const { spec, version, planned, team, clock, readSeconds, engines } = parts
  const { summary } = planned
  const { stages } = team
  const bytes = summary.totalBytes
  const of = (name: 'h2d' | 'broadcast' | 'reload') => unionSeconds(stages.map((one) => one[name]))
  const busy = unionSeconds(stages.flatMap((one) => [one.h2d, one.broadcast, one.reload]))
  return {
    update_id: spec.id,
    checkpoint: spec.checkpoint,
    version: version.version,
    mode: summary.mode,
    mode_reason: planned.reason,
    ranks: spec.ranks.length,
    tensors: summary.tensorCount,
    bytes,
    buckets: summary.bucketCount,
    ring_bytes: summary.ringBytes,
    bucket_bytes: summary.bucketBytes,
    gb_per_s: busy === 0 ? 0 : bytes / busy / GIGA,
    seconds: clock.seconds,
    stages: {
      ...(readSeconds === null ? {} : { read: { busy_s: readSeconds, bytes: version.bytes } }),
      h2d: { busy_s: of('h2d'), bytes },
      broadcast: { busy_s: of('broadcast'), bytes: spec.ranks.length > 1 ? bytes : 0 },
      reload: { busy_s: of('reload'), bytes: engines.length > 0 || of('reload') > 0 ? bytes : 0 },
    },
    device_bytes: team.deviceBytes,
    engines,
  }
}
