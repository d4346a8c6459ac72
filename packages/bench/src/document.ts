import { basename } from 'node:path'
import { CkptError, type Failure } from '@ckpt/core'
import type { DeviceSelection, Library } from '@ckpt/cuda'
import { version } from '../../server/package.json'
import { type Machine, machineOf } from './machine.ts'
import type { Row } from './row.ts'

/** What was measured on. */
export interface BenchHeader extends Machine {
  /** The day that it began, in UTC: `2026-01-31`. */
  readonly date: string
  /** `bun run bench --json`; of a path its last part. */
  readonly command: string
  readonly ckpt: string
  readonly bun: string
  readonly library: 'host' | 'cuda'
}

/** The JSON document. */
export interface BenchDocument {
  /** Nothing was wrong, nothing failed, nothing is left, no claim falls short. */
  readonly ok: boolean
  readonly header: BenchHeader
  readonly rows: readonly Row[]
  /** What was left out and why. */
  readonly notes: readonly string[]
  readonly compared: number
  readonly wrong: number
  /** Objects of the native library that were not freed. */
  readonly live_objects: number
  readonly seconds: number
  /** What ended the run early. */
  readonly error: Failure | null
}

/** In UTC: `2026-01-31`. */
export function today(): string {
  return new Date().toISOString().slice(0, 10)
}

export function headerOf(
  { ranks }: DeviceSelection,
  library: Library,
  args: readonly string[],
): BenchHeader {
  // where things lay on one machine says nothing about another, and the document may be published
  const words = args.map((word) => basename(word))
  return {
    date: today(),
    command: ['bun run bench', ...words].join(' '),
    ckpt: version,
    bun: Bun.version,
    library: library.kind,
    ...machineOf(library, ranks),
  }
}

export function documentOf(
  header: BenchHeader,
  rows: readonly Row[],
  notes: readonly string[],
  liveObjects: number,
  seconds: number,
  thrown: unknown,
): BenchDocument {
  const compared = rows.reduce((sum, row) => sum + row.compared, 0)
  const wrong = rows.reduce((sum, row) => sum + row.wrong, 0)
  const error = thrown === null ? null : CkptError.wrap(thrown).failure
  const short = rows.some(({ claims }) => claims.some(({ holds }) => !holds))
  const ok = wrong === 0 && !short && liveObjects === 0 && error === null
  return { ok, header, rows, notes, compared, wrong, live_objects: liveObjects, seconds, error }
}
