/** The daemon as a whole on the host library, with the reference engine as the peer. */
import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import {
  chmodSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import {
  CkptError,
  DEFAULT_RATES,
  type StatusAnswer,
  type EngineWeights,
  type UpdateReport,
  type UpdateState,
} from '@ckpt/core'
import {
  compareWeights,
  randomTensor,
  readSafetensors,
  writeSafetensors,
} from '../../../../test/support/checkpoint.ts'
import { until } from '../../../../test/support/until.ts'
import { type RunningEngine, runReferenceEngine } from '../engines/reference/index.ts'
import type { ServeOptions } from './options.ts'
import { type RunningDaemon, serve } from './serve.ts'

const TIMEOUT_MS = 60_000
const WAIT_MS = 10_000
/** Bun cuts a silent request after 10 s, and looks every 4 s. */
const SILENT_MS = 21_000

let dir: string
const daemons: RunningDaemon[] = []
const engines: RunningEngine[] = []

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'ckpt-serve-'))
  // a directory that the user names may be open to others: the socket is not
  chmodSync(dir, 0o755)
})

afterEach(async () => {
  for (const daemon of daemons.splice(0)) await daemon.close('the test has ended')
  for (const engine of engines.splice(0)) await engine.close()
  expect(ownSharedMemory()).toEqual([])
  rmSync(dir, { recursive: true, force: true })
})

/** Shared memory that this process has left in the system. */
function ownSharedMemory(): string[] {
  return readdirSync('/dev/shm').filter((name) => name.startsWith(`ckpt-${process.pid}-`))
}

const socketPath = () => join(dir, 'ckpt.sock')

async function start(options: Partial<ServeOptions> = {}): Promise<RunningDaemon> {
  const daemon = await serve({
    devices: 'host',
    ranks: 2,
    uds: socketPath(),
    stateDir: join(dir, 'state'),
    ...options,
  })
  daemons.push(daemon)
  return daemon
}

async function startEngine(
  ranks = 2,
  faults: string[] = [],
  disconnectGraceMs?: number,
): Promise<RunningEngine> {
  const engine = await runReferenceEngine({
    disconnectGraceMs,
    listen: '127.0.0.1:0',
    tensorParallelSize: ranks,
    devices: 'host',
    dialect: 'D4',
    faults,
  })
  engines.push(engine)
  return engine
}

/** A file of some tensors; names, sizes and contents depend on the seed. */
function writeFile(name: string, seed: number, prefix = 'layers'): string {
  const path = join(dir, name)
  const tensors = Array.from({ length: 12 }, (_, i) =>
    randomTensor(seed, `${prefix}.${i}.weight`, 'F32', 4, 8 * (i + 1), 65),
  )
  writeSafetensors(path, tensors)
  return path
}

interface Answer<T> {
  readonly status: number
  readonly body: T
}

async function call<T = any>(
  method: string,
  path: string,
  body?: unknown,
  over: { unix?: string; base?: string; token?: string } = { unix: socketPath() },
): Promise<Answer<T>> {
  const response = await fetch(`${over.base ?? 'http://ckpt'}${path}`, {
    method,
    ...(over.unix === undefined ? {} : { unix: over.unix }),
    ...(over.token === undefined ? {} : { headers: { authorization: `Bearer ${over.token}` } }),
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  })
  return { status: response.status, body: (await response.json()) as T }
}

async function checkWeights(engine: RunningEngine, files: string[], ranks: number): Promise<void> {
  const weights = (await (await fetch(`${engine.url}/v1/weights`)).json()) as EngineWeights
  expect(compareWeights(weights.ranks, readSafetensors(files), ranks)).toBeGreaterThan(0)
}

async function refusal(started: Promise<unknown>): Promise<CkptError> {
  const error = await started.then(
    () => null,
    (it) => it,
  )
  expect(error).toBeInstanceOf(CkptError)
  return error
}

describe('the main job', () => {
  test(
    'register, gather, update, then a second version of the same name',
    async () => {
      await start()
      const engine = await startEngine()
      const url = `${engine.url}/collective_rpc`
      for (const seed of [1, 2]) {
        const files = [writeFile('a.safetensors', seed), writeFile('b.safetensors', seed, 'more')]
        const registered = await call('POST', '/v1/checkpoints/llama/files', {
          files,
          replace: seed > 1,
          version: `v${seed}`,
        })
        expect(registered).toMatchObject({
          status: 200,
          body: { tensors: 24, version: `v${seed}` },
        })
        const gathered = await call('POST', '/v1/checkpoints/llama/gather-metas')
        expect(gathered).toMatchObject({ status: 200, body: { tensors: 24, ranks: 2 } })
        const update = await call<UpdateReport>('POST', '/v1/checkpoints/llama/update', {
          update_url: url,
          timeout: 30,
        })
        expect(update).toMatchObject({
          status: 200,
          body: { version: `v${seed}`, ranks: 2, engines: [{ result: 'ok', dialect: 'D4' }] },
        })
        await checkWeights(engine, files, 2)
      }
      const { body } = await call('GET', '/v1/status')
      expect(body.memory.checkpoints).toMatchObject([{ name: 'llama', version: 'v2' }])
      expect(body).toMatchObject({ running_update: null, pid: process.pid })
      expect((await call('DELETE', '/v1/checkpoints/llama?force=1')).body.existed).toBe(true)
      expect((await call('GET', '/v1/checkpoints')).body.checkpoints).toEqual([])
    },
    TIMEOUT_MS,
  )

  test(
    'wait: false, events until it is done, and its state afterwards',
    async () => {
      await start()
      const engine = await startEngine()
      await call('POST', '/v1/checkpoints/llama/files', { files: [writeFile('a.safetensors', 3)] })
      const accepted = await call<UpdateState>('POST', '/v1/checkpoints/llama/update', {
        update_url: `${engine.url}/collective_rpc`,
        update_id: 'mine',
        wait: false,
      })
      expect(accepted).toMatchObject({ status: 202, body: { update_id: 'mine' } })
      const events = await fetch('http://ckpt/v1/updates/mine/events', { unix: socketPath() })
      const text = await events.text()
      expect(text.trimEnd().split('\n\n').at(-1)).toStartWith('event: done\n')
      expect((await call('GET', '/v1/updates/mine')).body).toMatchObject({
        state: 'done',
        report: { update_id: 'mine', tensors: 12 },
      })
    },
    TIMEOUT_MS,
  )

  test(
    'what the user gets wrong has a code',
    async () => {
      await start()
      const files = [writeFile('a.safetensors', 4)]
      const path = '/v1/checkpoints/llama'
      expect(
        await call('POST', `${path}/update`, { update_url: 'http://127.0.0.1:9' }),
      ).toMatchObject({
        status: 404,
        body: { error: { code: 'checkpoint_not_found' } },
      })
      expect((await call('POST', `${path}/files`, { files })).status).toBe(200)
      expect(await call('POST', `${path}/files`, { files })).toMatchObject({
        status: 409,
        body: { error: { code: 'checkpoint_exists' } },
      })
      expect(await call('POST', '/v1/checkpoints/b/files', { files: ['/none'] })).toMatchObject({
        status: 400,
        body: { error: { code: 'file_not_found' } },
      })
      expect(
        await call('POST', `${path}/update`, { update_url: 'http://8.8.8.8/x' }),
      ).toMatchObject({
        status: 403,
        body: { error: { code: 'engine_not_allowed' } },
      })
      const nobody = { update_url: 'http://127.0.0.1:9/collective_rpc', timeout: 5 }
      expect(await call('POST', `${path}/update`, nobody)).toMatchObject({
        status: 502,
        body: { error: { code: 'engine_unreachable' } },
      })
    },
    TIMEOUT_MS,
  )
})

describe('while an update runs', () => {
  /** Starts the engine's workers of an update that was told of no engine. */
  async function feed(engine: RunningEngine, id: string): Promise<void> {
    await until('the map of sockets', WAIT_MS, async () => (await stateOf(id)).map !== undefined)
    const body = { method: 'update_weights_from_ipc', args: [(await stateOf(id)).map], timeout: 30 }
    const path = `${engine.url}/collective_rpc`
    expect((await fetch(path, { method: 'POST', body: JSON.stringify(body) })).status).toBe(200)
  }

  test(
    'what is refused disturbs neither it nor what is held',
    async () => {
      await start()
      const files = [writeFile('a.safetensors', 8)]
      const path = '/v1/checkpoints/llama'
      await call('POST', `${path}/files`, { files, version: 'v1' })
      const held = (await call('GET', path)).body
      await call('POST', `${path}/update`, { timeout: 30, update_id: 'mine', wait: false })
      await runningPhase('open')
      const again = { files: [writeFile('b.safetensors', 9)] }
      const refused = [
        [409, 'checkpoint_exists', 'POST', `${path}/files`, again],
        [409, 'checkpoint_busy', 'DELETE', `${path}?force=true`],
        [404, 'checkpoint_not_found', 'POST', '/v1/checkpoints/nobody/update', { timeout: 5 }],
        [409, 'update_running', 'POST', `${path}/update`, { if_busy: 'fail' }],
        [400, 'file_not_found', 'POST', `${path}/files`, { files: ['/none'], replace: true }],
      ] as const
      for (const [status, code, method, route, body] of refused) {
        const id = code === 'update_running' ? { update_id: 'mine' } : {}
        const answer = await call(method, route, body)
        expect(answer).toMatchObject({ status, body: { error: { code, ...id } } })
      }
      expect((await call('GET', path)).body).toEqual({ ...held, in_use: true })
      const engine = await startEngine()
      await feed(engine, 'mine')
      await until(
        'the update to be done',
        WAIT_MS,
        async () => (await stateOf('mine')).state === 'done',
      )
      await checkWeights(engine, files, 2)
      expect((await call('GET', path)).body).toEqual(held)
    },
    TIMEOUT_MS,
  )

  test(
    'it and one that waits behind it may be silent for longer than Bun allows, over both transports',
    async () => {
      writeFileSync(join(dir, 'token'), 'sesame\n', { mode: 0o600 })
      const daemon = await start({ listen: '127.0.0.1:0', tokenFile: join(dir, 'token') })
      const files = [writeFile('a.safetensors', 10)]
      const path = '/v1/checkpoints/llama'
      await call('POST', `${path}/files`, { files })
      const tcp = { base: daemon.addresses[1]!, token: 'sesame' }
      // without bodies: Bun 1.4.5 cuts no request that came with one
      const updates = [call('POST', `${path}/update`)]
      await runningPhase('open')
      updates.push(call('POST', `${path}/update`, undefined, tcp))
      await Bun.sleep(SILENT_MS)
      const engine = await startEngine()
      for (const update of updates) {
        await runningPhase('open')
        const id = (await call('GET', '/v1/status')).body.running_update
        await feed(engine, id)
        expect(await update).toMatchObject({ status: 200, body: { update_id: id } })
      }
      await checkWeights(engine, files, 2)
    },
    SILENT_MS + TIMEOUT_MS,
  )
})

describe("ranks' own sockets", () => {
  test(
    "checkpoint-engine's calls, one server per rank and two engines",
    async () => {
      const rankSockets = join(dir, 'rank-%d.sock')
      // rank 2 shares the device of rank 0, for an engine of its own
      const daemon = await start({ uds: null, rankSockets, devices: 'host:2', ranks: 3 })
      expect(daemon.addresses).toEqual(
        [0, 1, 2].map((rank) => `unix:${join(dir, `rank-${rank}.sock`)}`),
      )
      const pair = await startEngine(2)
      const single = await startEngine(1)
      const files = [0, 1, 2].map((rank) => writeFile(`${rank}.safetensors`, rank, `part${rank}`))
      const onAll = (path: string, bodies: unknown[]) =>
        Promise.all(
          bodies.map((body, rank) =>
            call('POST', `/v1/checkpoints/llama/${path}`, body, {
              unix: join(dir, `rank-${rank}.sock`),
            }),
          ),
        )
      for (const { status } of await onAll(
        'files',
        files.map((file) => ({ files: [file] })),
      )) {
        expect(status).toBe(200)
      }
      for (const gathered of await onAll('gather-metas', [undefined, undefined, undefined])) {
        expect(gathered).toMatchObject({ status: 200, body: { tensors: 36 } })
      }
      const follower = {
        ranks: [],
        update_url: null,
        inference_group_ranks: [],
        timeout: 30,
        uds: null,
      }
      const bodies = [
        { ...follower, update_url: `${pair.url}/collective_rpc`, inference_group_ranks: [0, 1] },
        follower,
        { ...follower, update_url: `${single.url}/collective_rpc`, inference_group_ranks: [2] },
      ]
      const updates = await onAll('update', bodies)
      expect(updates.map(({ status, body }) => [status, body.error])).toEqual(
        Array(3).fill([200, undefined]),
      )
      expect(new Set(updates.map(({ body }) => body.update_id)).size).toBe(1)
      await checkWeights(pair, files, 2)
      await checkWeights(single, files, 1)
    },
    TIMEOUT_MS,
  )
})

describe('TCP', () => {
  test(
    'needs the token, and directories that were named',
    async () => {
      writeFileSync(join(dir, 'token'), 'sesame\n', { mode: 0o600 })
      const files = [writeFile('a.safetensors', 5)]
      const tcp = { uds: null, listen: '127.0.0.1:0', tokenFile: join(dir, 'token') }
      const closed = await start(tcp)
      const path = '/v1/checkpoints/llama/files'
      const token = 'sesame'
      expect((await call('GET', '/v1/status', undefined, { base: closed.address })).status).toBe(
        401,
      )
      const refused = await call('POST', path, { files }, { base: closed.address, token })
      expect(refused).toMatchObject({ status: 403, body: { error: { code: 'path_not_allowed' } } })
      await closed.close('next')
      const open = await start({ ...tcp, allowDirs: [dir] })
      const accepted = await call('POST', path, { files }, { base: open.address, token })
      expect(accepted.status).toBe(200)
      const elsewhere = { files: ['/etc/hostname'], replace: true }
      expect((await call('POST', path, elsewhere, { base: open.address, token })).status).toBe(403)
    },
    TIMEOUT_MS,
  )

  test('without a token it does not start', async () => {
    const error = await refusal(start({ uds: null, listen: '127.0.0.1:0' }))
    expect(error.code).toBe('bad_request')
    expect(existsSync(join(dir, 'state'))).toBe(false)
  })
})

test(
  'a daemon with nothing to do measures its devices, and says what it found',
  async () => {
    await start()
    const rates = async () =>
      (await call<StatusAnswer>('GET', '/v1/status')).body.devices.map(({ h2d }) => h2d)
    const given = { bytes_per_second: DEFAULT_RATES.h2dBytesPerSecond, from: 'default' } as const
    expect(await rates()).toEqual([given, given])
    while ((await rates()).some(({ from }) => from !== 'measured')) await Bun.sleep(50)
    for (const { bytes_per_second: rate } of await rates()) expect(rate).toBeGreaterThan(1e7)
  },
  TIMEOUT_MS,
)

describe('two daemons', () => {
  test(
    'do not share a state directory or a socket, and the first one goes on',
    async () => {
      await start()
      const same = await refusal(start())
      expect(same.message).toBe(
        `another daemon (pid ${process.pid}) uses the state directory ${join(dir, 'state')}`,
      )
      const other = await refusal(start({ stateDir: join(dir, 'other') }))
      expect(other.message).toBe(`another daemon listens at ${socketPath()}`)
      expect((await call('GET', '/v1/healthz')).status).toBe(200)
      // what had been started for the one that was refused is gone: its directory can be used
      await start({ stateDir: join(dir, 'other'), uds: join(dir, 'other.sock') })
    },
    TIMEOUT_MS,
  )

  test(
    'have a private state directory each, by their addresses',
    async () => {
      const saved = process.env.XDG_STATE_HOME
      process.env.XDG_STATE_HOME = join(dir, 'xdg')
      try {
        const a = await start({ stateDir: null })
        const b = await start({ stateDir: null, uds: join(dir, 'b.sock') })
        expect(a.options.stateDir).not.toBe(b.options.stateDir)
        expect(a.options.stateDir).toStartWith(join(dir, 'xdg/ckpt/'))
        expect((statSync(a.options.stateDir).mode & 0o777).toString(8)).toBe('700')
        expect(await Bun.file(join(a.options.stateDir, 'address')).text()).toBe(`${socketPath()}\n`)
      } finally {
        if (saved === undefined) delete process.env.XDG_STATE_HOME
        else process.env.XDG_STATE_HOME = saved
      }
    },
    TIMEOUT_MS,
  )
})

/** A daemon in a process of its own. */
async function spawnDaemon(more: Partial<ServeOptions> = {}) {
  const options = JSON.stringify({
    devices: 'host',
    uds: socketPath(),
    stateDir: join(dir, 'state'),
    ...more,
  })
  const script = `
    const { serve } = await import(${JSON.stringify(join(import.meta.dir, 'serve.ts'))})
    await serve(${options})
    console.log('ready')`
  const child = Bun.spawn([process.execPath, '-e', script], { stdin: 'ignore', stdout: 'pipe' })
  await child.stdout.getReader().read()
  return child
}

test(
  'after SIGKILL the next start releases the engine that was left waiting',
  async () => {
    const shared = { devices: 'host:1', ranks: 2 }
    const killed = await spawnDaemon(shared)
    // it takes the request and nobody connects, so the workers of the other engine wait for their first list
    const silent = Bun.serve({
      hostname: '127.0.0.1',
      port: 0,
      idleTimeout: 0,
      fetch: ({ method }) => (method === 'POST' ? new Promise<Response>(() => {}) : new Response()),
    })
    try {
      // by itself it would wait for ten minutes
      const engine = await startEngine(1, [], 600_000)
      const idle = (ms: number) =>
        fetch(`${engine.url}/v1/weights`, { signal: AbortSignal.timeout(ms) }).then(
          () => true,
          () => false,
        )
      await call('POST', '/v1/checkpoints/m/files', { files: [writeFile('a.safetensors', 8)] })
      const url = `${engine.url}/collective_rpc`
      const engines = [
        { url, ranks: [0] },
        { url: `http://127.0.0.1:${silent.port}/collective_rpc`, ranks: [1], engine: 'vllm' },
      ]
      await call('POST', '/v1/checkpoints/m/update', { engines, wait: false, timeout: 300 })
      await runningPhase('open')
      for (let tries = 0; tries < 100 && (await idle(500)); tries++) await Bun.sleep(10)
      killed.kill('SIGKILL')
      await killed.exited
      expect(await idle(1000)).toBe(false)
      await start(shared)
      expect(await idle(15_000)).toBe(true)
      const marks = (await call('GET', '/v1/status')).body.engines
      expect(marks).toContainEqual(expect.objectContaining({ url, torn: true }))
    } finally {
      killed.kill('SIGKILL')
      await silent.stop(true)
    }
  },
  TIMEOUT_MS,
)

test(
  'what a killed daemon left in shared memory is removed by the next',
  async () => {
    // each in a process of its own: the memory goes when a process opens the native library, once
    const killed = await spawnDaemon()
    let next: typeof killed | null = null
    try {
      const buffers = await call('POST', '/v1/checkpoints/a/buffers', { bytes: [4096] })
      const { path } = buffers.body.buffers[0]
      expect(path).toStartWith(`/dev/shm/ckpt-${killed.pid}-`)
      killed.kill('SIGKILL')
      await killed.exited
      expect([existsSync(path), existsSync(socketPath())]).toEqual([true, true])
      next = await spawnDaemon()
      expect(existsSync(path)).toBe(false)
      expect((await call('GET', '/v1/healthz')).status).toBe(200)
      // one that lives keeps what it has, whatever else starts
      const kept = (await call('POST', '/v1/checkpoints/a/buffers', { bytes: [4096] })).body
      await start({ stateDir: join(dir, 'third'), uds: join(dir, 'third.sock') })
      expect(existsSync(kept.buffers[0].path)).toBe(true)
    } finally {
      killed.kill('SIGKILL')
      next?.kill('SIGKILL')
      await next?.exited
    }
  },
  TIMEOUT_MS,
)

describe('closing', () => {
  test(
    'aborts the running update, releases the engine, answers, and leaves nothing',
    async () => {
      const daemon = await start()
      const engine = await startEngine(2, ['hang@0'])
      // a trainer's buffer is shared memory of the registry's
      await call('POST', '/v1/checkpoints/trained/buffers', { bytes: [4096] })
      await call('POST', '/v1/checkpoints/llama/files', { files: [writeFile('a.safetensors', 6)] })
      const url = `${engine.url}/collective_rpc`
      const update = call('POST', '/v1/checkpoints/llama/update', { update_url: url, timeout: 20 })
      await runningPhase('transfer')
      const began = performance.now()
      await Promise.all([daemon.close('SIGTERM'), daemon.close('SIGTERM again')])
      const { status, body } = await update
      expect(status).toBeGreaterThanOrEqual(500)
      expect(['aborted', 'shutting_down']).toContain(body.error.code)
      expect(performance.now() - began).toBeLessThan(25_000)
      expect(existsSync(socketPath())).toBe(false)
      // the state directory is free, and the next daemon's update finds the engine released
      await start()
      const files = [writeFile('b.safetensors', 7)]
      await call('POST', '/v1/checkpoints/llama/files', { files })
      const healthy = await startEngine()
      const next = { update_url: `${healthy.url}/collective_rpc`, timeout: 20 }
      expect((await call('POST', '/v1/checkpoints/llama/update', next)).status).toBe(200)
      await checkWeights(healthy, files, 2)
    },
    TIMEOUT_MS * 2,
  )

  test(
    'answers calls that wait for those of other ranks',
    async () => {
      const rankSockets = join(dir, 'rank-%d.sock')
      const daemon = await start({ rankSockets, joinWindow: 3600 })
      const path = '/v1/checkpoints/llama/gather-metas'
      const waiting = call('POST', path, undefined, { unix: join(dir, 'rank-0.sock') })
      await Bun.sleep(100)
      await daemon.close('SIGTERM')
      expect(await waiting).toMatchObject({
        status: 503,
        body: { error: { code: 'shutting_down' } },
      })
    },
    TIMEOUT_MS,
  )

  test(
    'a daemon that cannot listen frees what it has',
    async () => {
      writeFileSync(join(dir, 'file'), '')
      const error = await refusal(start({ uds: join(dir, 'file') }))
      expect(error.message).toContain('is not a socket')
      await start()
    },
    TIMEOUT_MS,
  )
})

async function stateOf(id: string): Promise<UpdateState> {
  return (await call('GET', `/v1/updates/${id}`)).body
}

async function runningPhase(phase: string): Promise<void> {
  await until(`an update in phase ${phase}`, WAIT_MS, async () => {
    const { running_update: id } = (await call('GET', '/v1/status')).body
    return id !== null && (await stateOf(id)).phase === phase
  })
}
