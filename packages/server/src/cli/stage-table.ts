import type { UpdateReport } from '@ckpt/core'
import { formatBytes, formatRate, formatTable } from './format.ts'

/** A stage outside the update: bytes 0 where none move. */
export interface OuterStage {
  readonly name: string
  readonly seconds: number
  readonly bytes: number
}

/**
 * The stages of one update as a table: seconds, GB/s, buckets, ring bytes, mode. `before` are the stages that came first, such
 * as registering; `total` covers all of them. Lines that begin with two spaces overlap: they are busy times within the transfer.
 */
export function stageTable(
  report: UpdateReport,
  before: readonly OuterStage[],
  totalSeconds: number,
): string {
  const { seconds, stages } = report
  const row = (name: string, s: number, bytes = 0, more: readonly string[] = []) => [
    name,
    s.toFixed(3),
    formatRate(bytes, s),
    ...more,
  ]
  const transfer = [String(report.buckets), formatBytes(report.ring_bytes), report.mode]
  const optional = (name: string, s: number) => (s > 0 ? [row(name, s)] : [])
  return formatTable([
    ['stage', 'seconds', 'GB/s', 'buckets', 'ring', 'mode'],
    ...before.map((stage) => row(stage.name, stage.seconds, stage.bytes)),
    ...optional('pause', seconds.pause),
    row('plan', seconds.plan),
    row('open', seconds.open),
    row('transfer', seconds.transfer, report.bytes, transfer),
    ...(stages.read ? [row('  read', stages.read.busy_s, stages.read.bytes)] : []),
    row('  h2d', stages.h2d.busy_s, stages.h2d.bytes),
    row('  broadcast', stages.broadcast.busy_s, stages.broadcast.bytes),
    row('  reload', stages.reload.busy_s, stages.reload.bytes),
    row('release', seconds.release),
    row('post', seconds.post),
    ...optional('resume', seconds.resume),
    row('update', seconds.total, report.bytes),
    row('total', totalSeconds, report.bytes),
  ])
}
