/** Registry and updates without memory and engines, for tests of what lies before them. */
import {
  CkptError,
  chromeTrace,
  type EngineMapAnswer,
  type UpdateEvent,
  type UpdateReport,
  type UpdateRequest,
  type UpdateState,
} from '@ckpt/core'
import type { Daemon, Listener } from '../../context.ts'
import { GuestPulls } from '../../cluster/guest-pulls.ts'
import { BufferHolds } from '../buffer-holds.ts'
import { RankCalls } from '../rank-sockets.ts'
import type { Registry } from '../../registry/registry.ts'
import type { UpdateHandle, Updates } from '../../updates/updates.ts'

export const UNIX: Listener = { transport: 'unix', token: null, rank: null }

/** The one that has sent its placement map. */
export const ENGINE_WITH_MAP: EngineMapAnswer = {
  url: 'http://localhost:1',
  ranks: [{ rank: 0, digest: 'd', tensors: 2, copies: 2, bytes: 40, allocations: [64] }],
}

export interface StartedUpdate {
  readonly id: string
  readonly name: string
  readonly request: UpdateRequest
  finish(): void
  fail(error: CkptError): void
}

export interface FakeDaemon extends Daemon {
  closing: boolean
  allowedDirs: readonly string[] | null
  heartbeatMs: number
  /** Every call of the registry, `method` first. */
  readonly calls: unknown[][]
  readonly started: StartedUpdate[]
  /** Checkpoints whose plans were asked for. */
  readonly prepared: string[]
  /** What `updates.events` yields. */
  events: () => AsyncIterable<UpdateEvent>
  /** What `updates.start` throws. */
  refusal: CkptError | null
}

export function fakeDaemon(ranks: readonly number[] = [0], windowMs = 200): FakeDaemon {
  const calls: unknown[][] = []
  const started: StartedUpdate[] = []
  const prepared: string[] = []
  const start = (name: string, request: UpdateRequest): UpdateHandle => {
    if (daemon.refusal !== null) throw daemon.refusal
    const { promise, resolve, reject } = Promise.withResolvers<UpdateReport>()
    const id = request.update_id ?? `u${started.length}`
    promise.catch(() => {})
    started.push({
      id,
      name,
      request,
      finish: () => resolve(report(id, name)),
      fail: reject,
    })
    return { id, done: promise }
  }
  const registry = fakeRegistry(calls)
  const daemon: FakeDaemon = {
    version: '1.2.3',
    registry,
    updates: fakeUpdates(started, prepared, start, () => daemon.events()),
    start,
    rankCalls: new RankCalls({
      ranks,
      windowMs,
      gather: async (name) => registry.gather(name),
      start,
    }),
    gather: async (name) => registry.gather(name),
    cluster: null,
    pulls: new GuestPulls({ library: { kind: 'host' }, ranks: [], registry }),
    bufferHolds: new BufferHolds((ids) => registry.abandon(ids)),
    allowedDirs: null,
    closing: false,
    heartbeatMs: 10_000,
    calls,
    started,
    prepared,
    events: () => eventsOf([]),
    refusal: null,
  }
  return daemon
}

export async function* eventsOf(events: readonly UpdateEvent[]): AsyncGenerator<UpdateEvent> {
  yield* events
}

export function state(id: string, more: Partial<UpdateState> = {}): UpdateState {
  return {
    update_id: id,
    checkpoint: 'llama',
    state: 'running',
    phase: 'transfer',
    buckets_done: 1,
    buckets: 4,
    bytes_done: 10,
    bytes: 40,
    started_at: '2026-01-01T00:00:00.000Z',
    ...more,
  }
}

export function report(id: string, name: string): UpdateReport {
  const stage = { busy_s: 0, bytes: 40 }
  return {
    update_id: id,
    checkpoint: name,
    version: null,
    mode: 'pipelined',
    mode_reason: 'fake',
    ranks: 1,
    tensors: 2,
    bytes: 40,
    buckets: 4,
    ring_bytes: 1,
    bucket_bytes: 1,
    gb_per_s: 1,
    seconds: {
      total: 1,
      gather: 0,
      plan: 0,
      open: 0,
      transfer: 1,
      release: 0,
      post: 0,
      pause: 0,
      resume: 0,
    },
    stages: { h2d: stage, broadcast: stage, reload: stage },
    device_bytes: { before: 0, peak: 0, after: 0 },
    engines: [],
  }
}

function fakeRegistry(calls: unknown[][]): Registry {
  const answer = { name: 'llama', version: null, tensors: 2, bytes: 40, seconds: 0.5 }
  const summary = {
    name: 'llama',
    version: null,
    state: 'complete' as const,
    tensors: 2,
    bytes: 40,
    digest: 'd',
    in_place: false,
    files: [],
    in_use: false,
  }
  return {
    async register(...args) {
      calls.push(['register', ...args])
      return { ...answer, name: args[0] }
    },
    async pull(...args) {
      calls.push(['pull', ...args])
      return { ...answer, name: args[0] }
    },
    async drop(...args) {
      calls.push(['drop', ...args])
      return { name: args[0], existed: args[0] === 'llama' }
    },
    claim: () => () => {},
    lease() {
      throw new CkptError('checkpoint_not_found', 'no lease here')
    },
    async check() {},
    gather(name) {
      calls.push(['gather', name])
      return { digest: 'd', ranks: 1, tensors: 2, bytes: 40, seconds: 0 }
    },
    busy: false,
    list: () => [summary],
    describe(name) {
      if (name !== 'llama') throw new CkptError('checkpoint_not_found', `no checkpoint ${name}`)
      return { ...summary, tensor_list: [{ name: 'w', dtype: 'BF16', shape: [2, 2], bytes: 8 }] }
    },
    async buffers(...args) {
      calls.push(['buffers', ...args])
      return { buffers: [{ id: 'b0', path: '/dev/shm/x', bytes: 8 }] }
    },
    async abandon(...args) {
      calls.push(['abandon', ...args])
    },
    async tensors(...args) {
      calls.push(['tensors', ...args])
      return { ...answer, name: args[0] }
    },
    metas: () => ({ '0': { memory_buffer_metas_list: [], p2p_store_addr: null, rdma_device: '' } }),
    loadMetas: (metas) => void calls.push(['loadMetas', metas]),
    memory: () => ({ pinned_bytes: 40, budget_bytes: 100 }),
    async close() {},
  }
}

function fakeUpdates(
  started: readonly StartedUpdate[],
  prepared: string[],
  start: Updates['start'],
  events: () => AsyncIterable<UpdateEvent>,
): Updates {
  const find = (id: string) => {
    if (started.some((update) => update.id === id)) return
    throw new CkptError('update_not_found', `no update ${id}`)
  }
  return {
    leader: null,
    node: null,
    async recover() {},
    prepare: (name) => void prepared.push(name),
    begin: () => {},
    start,
    state(id) {
      find(id)
      return state(id)
    },
    events,
    trace(id) {
      find(id)
      return chromeTrace([{ group: 'update', name: 'phases', spans: Float64Array.of(1, 2) }])
    },
    abort(id, reason) {
      find(id)
      for (const update of started) {
        if (update.id === id) update.fail(new CkptError('aborted', reason ?? 'asked for'))
      }
      return state(id, { state: 'failed' })
    },
    status: () => ({
      devices: [
        {
          index: 0,
          name: 'host',
          uuid: 'GPU-0',
          free_bytes: 1,
          total_bytes: 2,
          h2d: { bytes_per_second: 54e9, from: 'default' },
        },
      ],
      ranks: [{ rank: 0, device: 0, key: 'GPU-0' }],
      engines: [],
      broadcast: { bytes_per_second: 62e9, from: 'default' },
      running_update: null,
      queued: 0,
      quarantined_bytes: 7,
    }),
    async engineMap({ url, tensor }) {
      if (url !== ENGINE_WITH_MAP.url) throw new CkptError('not_found', `no engine at ${url}`)
      const { ranks } = ENGINE_WITH_MAP
      if (tensor === undefined) return { url, ranks }
      const placed = ranks.map((rank) => ({ ...rank, placed: [] }))
      return { url, tensor: { name: tensor, dtype: 'bfloat16', shape: [2, 2] }, ranks: placed }
    },
    deviceLost: new Promise(() => {}),
    async close() {},
  }
}
