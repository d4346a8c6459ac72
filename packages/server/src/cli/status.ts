import type { ClusterStatus, EnginePlanRates, PlanRate, StatusAnswer } from '@ckpt/core'
import type { Command } from 'commander'
import { formatBytes, formatTable } from './format.ts'
import { clientOf, type DaemonFlags, withDaemon } from './options.ts'
import { print } from './output.ts'

export function addStatusCommand(program: Command): void {
  withDaemon(program.command('status'))
    .description('devices, ranks, engines, memory and the running update of the daemon')
    .action(async (flags: DaemonFlags) => {
      const status = await clientOf(flags).status()
      await print(flags.json === true, status, () => statusText(status))
    })
}

/** For people. An older daemon does not say which rates plans count on. */
export function statusText(status: StatusAnswer): string {
  const { memory } = status
  const onNodes = status.devices.some((device) => device.numa_node !== undefined)
  const quarantined =
    memory.quarantined_bytes === 0 ? '' : `, ${formatBytes(memory.quarantined_bytes)} in quarantine`
  const sections = [
    `ckpt ${status.version}, process ${status.pid}`,
    `pinned memory: ${formatBytes(memory.pinned_bytes)} of ${formatBytes(memory.budget_bytes)}${quarantined}`,
    `update: ${status.running_update ?? 'none is running'}, ${status.queued} waiting`,
    '',
    formatTable([
      ['rank', 'device', 'key'],
      ...status.ranks.map((rank) => [String(rank.rank), String(rank.device), rank.key]),
    ]),
    '',
    formatTable([
      ['device', 'name', 'free', 'total', 'pinned to device', ...(onNodes ? ['NUMA node'] : [])],
      ...status.devices.map((device) => [
        String(device.index),
        device.name,
        formatBytes(device.free_bytes),
        formatBytes(device.total_bytes),
        rateText(device.h2d),
        ...(onNodes ? [String(device.numa_node ?? '-')] : []),
      ]),
    ]),
  ]
  const broadcast: PlanRate | undefined = status.broadcast
  if (status.ranks.length > 1 && broadcast !== undefined) {
    sections.push('', `broadcast: ${rateText(broadcast)}`)
  }
  if (status.cluster !== undefined) sections.push('', clusterText(status.cluster))
  if (status.engines.length > 0) sections.push('', enginesText(status.engines))
  return sections.join('\n')
}

/** What a plan counts on: `54.0 GB/s, default`. */
function rateText(rate: PlanRate | undefined): string {
  if (rate === undefined) return '-'
  const { bytes_per_second: bytesPerSecond, from } = rate
  return `${(bytesPerSecond / 1e9).toFixed(1)} GB/s, ${from}`
}

function clusterText(cluster: ClusterStatus): string {
  const { node_rank, nodes, leader, epoch, peers } = cluster
  const who = `cluster: node ${node_rank} of ${nodes}${leader ? ', the leader' : ''}, epoch ${epoch}`
  const missing = (cluster.missing ?? []).map(({ message }) => `missing: ${message}`)
  if (peers.length === 0) {
    return [`${who}, ${leader ? 'nobody has joined' : 'no leader'}`, ...missing].join('\n')
  }
  const rows = peers.map((peer) => [
    String(peer.node_rank),
    peer.host,
    String(peer.ranks.length),
    [...new Set(peer.ranks.map(({ kind }) => kind))].join(', '),
    String(peer.session),
  ])
  const table = formatTable([['node', 'host', 'ranks', 'devices', 'session'], ...rows])
  return [who, table, ...missing].join('\n')
}

function enginesText(engines: StatusAnswer['engines']): string {
  return formatTable([
    ['engine', 'dialect', 'version', 'a bucket', 'a tensor', 'rates', 'state'],
    ...engines.map((engine) => {
      const rates: EnginePlanRates | undefined = engine.rates
      return [
        engine.url,
        engine.method ?? engine.dialect ?? '-',
        engine.version ?? '-',
        microseconds(rates?.bucket_s),
        microseconds(rates?.tensor_s),
        rates?.from ?? '-',
        engineState(engine),
      ]
    }),
  ])
}

function microseconds(seconds: number | undefined): string {
  if (seconds === undefined) return '-'
  return `${(seconds * 1e6).toFixed(0)} us`
}

/** What people are told of an engine. */
export function engineState({
  torn,
  updated,
  engine_restart_needed,
}: StatusAnswer['engines'][number]) {
  const states = [
    ...(torn ? ['torn: it holds a part of an update'] : []),
    ...(engine_restart_needed ? ['it must be started again'] : []),
  ]
  if (states.length > 0) return states.join('; ')
  return updated ? 'ok' : 'has taken no update of this daemon'
}
