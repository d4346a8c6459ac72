import type { EngineReport, UpdateReport } from '@ckpt/core'
import { counted, formatBytes } from './format.ts'
import { stageTable } from './stage-table.ts'
import { type JobResult, registerNotes, registerStage } from './update-job.ts'
import type { VerifiedEngine } from './verify-update.ts'

/** What an engine with our worker extension had to load itself, which is slow where it is every time. */
function reloadLines({ url, reload }: EngineReport): string[] {
  if (reload === undefined) return []
  const { replayed, ordinary, reasons } = reload
  const why = Object.entries(reasons).map(([reason, count]) => `note: ${count} of them: ${reason}`)
  return [`${url}: ${replayed} tensors replayed, ${ordinary} loaded by the engine`, ...why]
}

/** Engines of daemons that are lost, which an update of the survivors leaves out. */
function leftOutLines({ engines }: UpdateReport): string[] {
  return engines.flatMap(({ url, ranks, result, error }) => {
    if (result !== 'not_contacted') return []
    const why = error === undefined ? '' : `: ${error.message}`
    return [`note: ${url} of rank ${ranks.join(', ')} was left out${why}`]
  })
}

/** Why not straight into the engines' memory, where somebody has said so. */
function notDirectLines({ mode, mode_reason }: UpdateReport): string[] {
  return mode_reason.includes('not direct: ') ? [`note: ${mode}: ${mode_reason}`] : []
}

function remoteLines({ p2p }: UpdateReport): string[] {
  if (p2p === undefined) return []
  const how = p2p.transports.join(', ')
  return [`note: ${formatBytes(p2p.bytes)} read out of the memory of other hosts (${how})`]
}

function verifiedLine({ url, result, ranks }: VerifiedEngine): string {
  if (result === 'no_route')
    return `note: ${url} was not verified: it has no route /weights_checker`
  const what = `${url}: the checksums of ${counted(ranks, 'rank')}`
  return result === 'equal'
    ? `${what} are those of the same files before`
    : `${what} were recorded for the next time`
}

/** What a person is told of a job that is done. */
export function resultText(name: string, result: JobResult, notes: readonly string[]): string {
  const { seconds: s, registered } = result
  const before = [
    ...(registered === null ? [] : [registerStage(registered, s.register)]),
    { name: 'ready', seconds: s.ready, bytes: 0 },
    { name: 'gather', seconds: s.gather, bytes: 0 },
  ]
  const lines = [...notes, ...registerNotes(registered)].map((note) => `note: ${note}`)
  for (const report of result.updates) {
    const updated = report.engines.filter(({ result }) => result !== 'not_contacted')
    const engines = updated.map(
      (engine) => `${engine.url} (${engine.method ?? engine.dialect ?? 'dialect unknown'})`,
    )
    lines.push(
      `${name} -> ${engines.join(', ')}: ${counted(report.tensors, 'tensor')} on ${counted(report.ranks, 'rank')}, ${s.total.toFixed(3)} s ${registered === null ? 'in all' : 'from files to engine'}`,
      stageTable(report, before, s.total),
      ...report.engines.flatMap(reloadLines),
      ...leftOutLines(report),
      ...notDirectLines(report),
      ...remoteLines(report),
    )
  }
  lines.push(...(result.verified ?? []).map(verifiedLine))
  return lines.join('\n')
}
