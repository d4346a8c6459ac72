import { expect, test } from 'bun:test'
import type { StatusAnswer } from '@ckpt/core'
import { engineState, statusText } from './status.ts'

const RATES = { bucket_s: 2e-4, tensor_s: 2e-5, bytes_per_second: 1.5e12, from: 'default' } as const
const ENGINE = {
  url: 'http://e',
  dialect: null,
  version: null,
  torn: false,
  updated: false,
  rates: RATES,
}

test('what is said of an engine', () => {
  expect(engineState(ENGINE)).toBe('has taken no update of this daemon')
  expect(engineState({ ...ENGINE, updated: true })).toBe('ok')
  expect(engineState({ ...ENGINE, updated: true, torn: true })).toBe(
    'torn: it holds a part of an update',
  )
  expect(engineState({ ...ENGINE, torn: true, engine_restart_needed: true })).toBe(
    'torn: it holds a part of an update; it must be started again',
  )
})

const STATUS: StatusAnswer = {
  version: '1.0.0',
  pid: 1,
  devices: [0, 1].map((index) => ({
    index,
    name: 'GPU',
    uuid: `GPU-${index}`,
    free_bytes: 1e9,
    total_bytes: 2e9,
    h2d: { bytes_per_second: 54e9, from: 'default' },
  })),
  ranks: [0, 1].map((rank) => ({ rank, device: rank, key: `${rank}` })),
  engines: [ENGINE],
  broadcast: { bytes_per_second: 250e9, from: 'learnt' },
  memory: { pinned_bytes: 0, budget_bytes: 1e9, quarantined_bytes: 0 },
  running_update: null,
  queued: 0,
} as unknown as StatusAnswer

test('the status says what plans count on', () => {
  const lines = statusText(STATUS).split('\n')
  expect(lines.filter((line) => line.includes('54.0 GB/s, default'))).toHaveLength(2)
  expect(lines).toContain('broadcast: 250.0 GB/s, learnt')
  expect(lines.at(-1)).toMatch(/http:\/\/e +- .* 200 us +20 us +default/)
  const native = { ...STATUS, engines: [{ ...ENGINE, method: 'native-ipc' as const }] }
  expect(statusText(native)).toMatch(/http:\/\/e +native-ipc /)
})

test('a daemon that does not say it yet has a status all the same', () => {
  const devices = STATUS.devices.map(({ h2d: _, ...device }) => device)
  const { rates: _, ...engine } = ENGINE
  const { broadcast: __, ...rest } = STATUS
  const older = { ...rest, devices, engines: [engine] } as unknown as StatusAnswer
  const lines = statusText(older).split('\n')
  expect(lines.filter((line) => /GPU .* -$/.test(line))).toHaveLength(2)
  expect(lines).not.toContainEqual(expect.stringContaining('broadcast'))
  expect(lines.at(-1)).toMatch(/http:\/\/e +- +- +- +- +- +has taken/)
})

test('who works together', () => {
  const peer = {
    node_rank: 1,
    host: 'n1',
    session: 4,
    ranks: STATUS.ranks.map(({ device }) => ({ device, kind: 'H200', uuid: 'u' })),
  }
  const cluster = { node_rank: 0, nodes: 3, joined: 2, leader: true, epoch: 5, peers: [peer] }
  const lines = statusText({ ...STATUS, cluster }).split('\n')
  expect(lines).toContain('cluster: node 0 of 3, the leader, epoch 5')
  const missing = [{ node_rank: 2, message: 'node 2 has not joined', ranks: [] }]
  const incomplete = statusText({ ...STATUS, cluster: { ...cluster, missing } })
  expect(incomplete.split('\n')).toContain('missing: node 2 has not joined')
  expect(lines).toContainEqual(expect.stringMatching(/^ *1 +n1 +2 +H200 +4$/))
  const alone = { ...cluster, node_rank: 2, leader: false, peers: [] }
  expect(statusText({ ...STATUS, cluster: alone })).toContain(
    'cluster: node 2 of 3, epoch 5, no leader',
  )
  expect(statusText(STATUS)).not.toContain('cluster')
})
