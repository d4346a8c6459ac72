/** `ckpt update` as a process, against real daemons and reference engines on the host library. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  type EngineWeights,
  spansOf,
  type StatusAnswer,
  timelineRows,
  type Trace,
} from '@ckpt/core'
import { compareWeights, readSafetensors } from '../../../../test/support/checkpoint.ts'
import {
  CKPT,
  request,
  run,
  type Scratch,
  type Started,
  scratch,
  start,
} from '../../../../test/support/process.ts'
import { writeCheckpoint } from './write-checkpoint.ts'

setDefaultTimeout(60_000)

const TENSORS = Array.from({ length: 12 }, (_, i) => ({
  name: `layers.${i}.weight`,
  dtype: 'BF16',
  shape: [8 + (i % 3), 4096],
}))

let dir: Scratch
let socket: string
let daemon: Started
let engine: Started
let model: { path: string; files: readonly string[] }

beforeAll(async () => {
  dir = scratch()
  socket = join(dir.path, 'ckpt.sock')
  model = await makeModel('model', 1)
  ;[daemon, engine] = await Promise.all([
    startDaemon(socket, '--uds', socket, '--ranks', '2'),
    startEngine('127.0.0.1:0', 2),
  ])
})

afterAll(async () => {
  await Promise.all([daemon?.stop(), engine?.stop()])
  dir.remove()
})

async function makeModel(name: string, seed: number, tensors = TENSORS) {
  const path = join(dir.path, name)
  mkdirSync(path, { recursive: true })
  const { files } = await writeCheckpoint(path, tensors, seed, 300_000)
  return { path, files }
}

function startDaemon(name: string, ...args: string[]): Promise<Started> {
  const state = ['--state-dir', `${name}.state`, '--devices', 'host']
  return start([...CKPT, 'serve', ...args, ...state, '--json'], /"address": ?"([^"]+)"/)
}

function startEngine(listen: string, size: number, ...args: string[]): Promise<Started> {
  const engine = ['engine', '--listen', listen, '--tensor-parallel-size', String(size)]
  return start([...CKPT, ...engine, '--devices', 'host', '--json', ...args], /"url": ?"([^"]+)"/)
}

/** `ckpt update` of the model of the beginning, unless `args` say otherwise. */
function update(...args: string[]) {
  const defaults = (option: string, value: string) => (args.includes(option) ? [] : [option, value])
  const own = [
    ...defaults('--endpoint', engine.ready[1]!),
    ...defaults('--inference-parallel-size', '2'),
    ...defaults('--checkpoint-path', model.path),
  ]
  const env = { XDG_RUNTIME_DIR: dir.path, XDG_STATE_HOME: dir.path }
  return run([...CKPT, 'update', ...own, ...args, '--json'], env)
}

/** With the daemon of the beginning; the document is all that is on stdout. */
async function updateThere(...args: string[]) {
  const { status, stdout, stderr } = await update('--daemon', socket, ...args)
  return { status, document: JSON.parse(stdout), stderr }
}

async function expectHeld(url: string, size: number, files: readonly string[]) {
  const weights = (await (await fetch(`${url}/v1/weights`)).json()) as EngineWeights
  const tensors = readSafetensors(files)
  expect(tensors.size).toBeGreaterThan(0)
  expect(compareWeights(weights.ranks, tensors, size)).toBe(size * tensors.size)
  return weights
}

/** Work that hangs ends the test with what the daemon says of itself, and what it and the engine have printed. */
async function orTell<T>(work: Promise<T>, limitMs: number, peer: Started): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined
  const limit = new Promise<null>((resolve) => {
    timer = setTimeout(resolve, limitMs, null)
  })
  const done = await Promise.race([work.then((value) => ({ value })), limit])
  clearTimeout(timer)
  if (done !== null) return done.value
  work.catch(() => {})
  const state = await Promise.race([daemonState().catch(String), Bun.sleep(5000)])
  // printed at once: ending the processes may hang as well
  console.error(`the daemon's state: ${state ?? 'no answer for 5 s'}`)
  console.error(`the daemon's output:\n${daemon.stderr()}\nthe engine's output:\n${peer.stderr()}`)
  throw new Error(`still running after ${limitMs / 1000} s`)
}

async function daemonState(): Promise<string> {
  const { body: status } = await request(socket, 'GET', '/v1/status')
  const id = (status as StatusAnswer).running_update
  const update = id === null ? null : (await request(socket, 'GET', `/v1/updates/${id}`)).body
  return JSON.stringify({ status, update }, null, 1)
}

describe('the whole job', () => {
  test('register, gather, update; version after version under one name and path', async () => {
    for (const seed of [1, 2, 3]) {
      const { path, files } = await makeModel('trained', seed)
      const version = ['--weight-version', String(seed)]
      const { status, document, stderr } = await updateThere('--checkpoint-path', path, ...version)
      expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
      await expectHeld(engine.ready[1]!, 2, files)
      const { body } = await request(socket, 'GET', '/v1/status')
      expect((body as StatusAnswer).engines).toMatchObject([{ version: String(seed), torn: false }])
      expect(document).toMatchObject({ ok: true, name: 'my-checkpoint-iter-0' })
      expect(document.registered).toMatchObject({ tensors: 12, version: String(seed) })
      expect(document.updates).toHaveLength(1)
      expect(document.updates[0]).toMatchObject({ ranks: 2, tensors: 12 })
      expect(document.seconds.total).toBeGreaterThan(document.seconds.update)
    }
    const { body } = await request(socket, 'GET', '/v1/checkpoints')
    expect(body.checkpoints).toHaveLength(1)
  })

  test("SGLang's route tells the engine its version too", async () => {
    const { status, document } = await updateThere('--engine', 'sglang', '--weight-version', 'v7')
    expect(document.error).toBeUndefined()
    expect(status).toBe(0)
    const weights = await expectHeld(engine.ready[1]!, 2, model.files)
    expect(weights.version).toBe('v7')
  })

  test('people get a table of the stages', async () => {
    const args = ['update', 'table', '--daemon', socket, '--checkpoint-path', model.path]
    const more = ['--endpoint', engine.ready[1]!, '--inference-parallel-size', '2']
    const { status, stdout, stderr } = await run([...CKPT, ...args, ...more])
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
    expect(stdout).toMatch(/stage +seconds +GB\/s +buckets +ring +mode/)
    expect(stdout).toMatch(/transfer +\d+\.\d{3} +\d+\.\d\d +\d+ +\d+\.\d MB +(pipelined|serial)/)
    expect((await run([...CKPT, 'rm', 'table', '--daemon', socket])).status).toBe(0)
  })

  test('straight into an engine that has said where its weights lie; else the reason is told', async () => {
    const direct = await startEngine('127.0.0.1:0', 2, '--direct')
    try {
      const fewer = await makeModel('fewer', 3, TENSORS.slice(1))
      const next = await makeModel('next', 2, TENSORS.slice(1))
      const stages = []
      for (const { path, files } of [fewer, next, model]) {
        const args = ['update', 'direct', '--daemon', socket, '--checkpoint-path', path]
        const more = ['--endpoint', direct.ready[1]!, '--inference-parallel-size', '2']
        const { status, stdout, stderr } = await run([...CKPT, ...args, ...more])
        expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
        const note = stdout.match(/^note: .*$/m)?.[0]
        stages.push([stdout.match(/transfer .* ([a-z]+)$/m)?.[1], note])
        await expectHeld(direct.ready[1]!, 2, files)
      }
      const why = "the engine's placement map has no layers.0.weight"
      expect(stages).toEqual([
        ['pipelined', undefined],
        ['direct', undefined],
        [
          'pipelined',
          expect.stringMatching(new RegExp(`^note: pipelined: .+; not direct: ${why}$`)),
        ],
      ])
      expect((await run([...CKPT, 'rm', 'direct', '--daemon', socket])).status).toBe(0)
    } finally {
      await direct.stop()
    }
  })

  test('--trace writes when each stage of each rank had work', async () => {
    const path = join(dir.path, 'trace.json')
    const { status, document } = await updateThere('--trace', path)
    expect(document.error).toBeUndefined()
    expect(status).toBe(0)
    const rows = timelineRows(JSON.parse(readFileSync(path, 'utf8')) as Trace)
    const spans = Object.fromEntries(rows.map((row) => [`${row.group} ${row.name}`, spansOf(row)]))
    const phases = spans['update phases']!
    expect(phases[0]!.beginMs).toBe(0)
    expect(phases.map(({ name }) => name)).toContain('transfer')
    const transfer = phases.find(({ name }) => name === 'transfer')!
    for (const rank of [0, 1]) {
      const h2d = spans[`rank ${rank} h2d`] ?? []
      const reload = spans[`rank ${rank} reload`]!
      expect(reload.at(-1)!.endMs).toBeLessThanOrEqual(transfer.endMs + 1)
      for (const { beginMs, endMs } of [...h2d, ...reload]) {
        expect(beginMs).toBeGreaterThan(0)
        expect(endMs).toBeGreaterThanOrEqual(beginMs)
      }
      for (const { beginMs, endMs } of spans[`rank ${rank} wait`] ?? []) {
        for (const work of [...h2d, ...reload]) {
          expect(work.endMs <= beginMs || work.beginMs >= endMs).toBe(true)
        }
      }
    }
    const nowhere = await updateThere('--trace', dir.path)
    expect(nowhere.document.error.message).toContain(`--trace ${dir.path} cannot be written`)
    expect(nowhere.status).toBe(2)
  })

  test('--verify compares what SGLang says of its weights with what it said of the same files', async () => {
    let sum = 'one'
    using sglang = Bun.serve({
      port: 0,
      routes: {
        '/weights_checker': {
          POST: () => {
            const at = { tp_rank: 0, tp_size: 1, dp_rank: 0, dp_size: 1, pp_rank: 0, pp_size: 1 }
            const rank = { checksums: { w: sum }, per_gpu_checksum: sum, parallelism_info: at }
            return Response.json({ success: true, message: 'Success.', ranks: [rank] })
          },
        },
      },
      fetch: (of) =>
        fetch(engine.ready[1]! + new URL(of.url).pathname, { method: of.method, body: of.body }),
    })
    const env = { XDG_RUNTIME_DIR: dir.path, XDG_STATE_HOME: join(dir.path, 'state') }
    const there = ['--endpoint', `http://127.0.0.1:${sglang.port}`, '--engine', 'sglang']
    const how = ['--checkpoint-path', model.path, '--inference-parallel-size', '2', '--verify']
    const verify = (...more: string[]) =>
      run([...CKPT, 'update', 'verified', '--daemon', socket, ...there, ...how, ...more], env)
    expect((await verify()).stdout).toContain('checksums of 1 rank were recorded for the next time')
    const again = await verify('--json')
    const verified = [expect.objectContaining({ result: 'equal', ranks: 1 })]
    expect(JSON.parse(again.stdout)).toMatchObject({ ok: true, verified })
    sum = 'two'
    const wrong = await verify()
    expect(wrong.status).toBe(1)
    expect(wrong.stderr).toMatch(/checksum of tp 0 of 1.* is two; with the same files it was one/)
    const refused = await verify('--consume')
    expect([refused.status, refused.stderr]).toEqual([2, expect.stringContaining('--verify reads')])
  })

  test('what the daemon holds is used when there is no path', async () => {
    await request(socket, 'POST', '/v1/checkpoints/held/files', {
      files: model.files,
      replace: true,
    })
    const env = { XDG_RUNTIME_DIR: dir.path }
    const more = ['--endpoint', engine.ready[1]!, '--inference-parallel-size', '2', '--json']
    const result = await run([...CKPT, 'update', 'held', '--daemon', socket, ...more], env)
    expect(result.status).toBe(0)
    expect(JSON.parse(result.stdout).registered).toBeNull()
    await expectHeld(engine.ready[1]!, 2, model.files)
  })

  describe('of two engines with a rank each', () => {
    let engines: Started[]
    const endpoints = () => engines.flatMap((one) => ['--endpoint', one.ready[1]!])
    // each has its rank on the first device, as the ranks of this daemon
    const BOTH = ['--inference-parallel-size', '1', '--devices', 'host:1']
    const updateBoth = async (...args: string[]) => {
      const { status, stdout } = await update(...endpoints(), ...BOTH, ...args)
      return { status, document: JSON.parse(stdout) }
    }
    /** Of each update: the ranks that it was of, by engine. */
    const ranksOf = (document: { updates: { engines: { ranks: number[] }[] }[] }) =>
      document.updates.map((report) => report.engines.map(({ ranks }) => ranks))

    beforeAll(async () => {
      engines = await Promise.all([0, 1].map(() => startEngine('127.0.0.1:0', 1)))
    })
    afterAll(() => Promise.all(engines.map((one) => one.stop())))

    test('--update-method all updates everybody, then the first group by its ranks', async () => {
      const { path, files } = await makeModel('both', 11)
      const { status, document } = await updateBoth(
        '--update-method',
        'all',
        '--checkpoint-path',
        path,
      )
      expect(document.error).toBeUndefined()
      expect(status).toBe(0)
      expect(ranksOf(document)).toEqual([[[0], [1]], [[0]]])
      expect(document.updates.map((report: any) => report.ranks)).toEqual([2, 1])
      for (const one of engines) await expectHeld(one.ready[1]!, 1, files)
    })

    test('--update-method p2p updates the first group alone', async () => {
      const before = await makeModel('before', 12)
      expect((await updateBoth('--checkpoint-path', before.path)).status).toBe(0)
      const { path, files } = await makeModel('after', 13)
      const { status, document } = await updateBoth(
        '--update-method',
        'p2p',
        '--checkpoint-path',
        path,
      )
      expect(document.error).toBeUndefined()
      expect(status).toBe(0)
      expect(ranksOf(document)).toEqual([[[0]]])
      expect(document.updates[0].ranks).toBe(1)
      await expectHeld(engines[0]!.ready[1]!, 1, files)
      await expectHeld(engines[1]!.ready[1]!, 1, before.files)
    })
  })

  test('--custom-dist is accepted with a notice', async () => {
    const { status, document } = await updateThere('--custom-dist', 'vllm_nccl')
    expect(status).toBe(0)
    expect(document.notes[0]).toContain('vllm_nccl')
  })

  test('metas are saved as JSON', async () => {
    const path = join(dir.path, 'metas.json')
    const { status } = await updateThere('--save-metas-file', path)
    expect(status).toBe(0)
    const owners = Object.values<any>(await Bun.file(path).json())
    const names = owners.flatMap((owner) =>
      owner.memory_buffer_metas_list.flatMap((list: any) =>
        list.metas.map((meta: any) => meta.name),
      ),
    )
    expect(names.sort()).toContain('layers.11.weight')
  })
})

describe('without a daemon', () => {
  test('one runs for the call, and leaves nothing', async () => {
    const { status, stdout, stderr } = await update('--devices', 'host')
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
    expect(JSON.parse(stdout).updates[0].engines[0].result).toBe('ok')
    await expectHeld(engine.ready[1]!, 2, model.files)
    expect([
      ...new Bun.Glob('*.sock').scanSync({ cwd: join(dir.path, 'ckpt'), onlyFiles: false }),
    ]).toEqual([])
  })

  test('an engine of which each rank has an endpoint of its own: two engines', async () => {
    const engines = await Promise.all([0, 1].map(() => startEngine('127.0.0.1:0', 1)))
    try {
      const endpoints = engines.flatMap((one) => ['--endpoint', one.ready[1]!])
      const result = await update(
        ...endpoints,
        '--inference-parallel-size',
        '1',
        '--devices',
        'host:1',
      )
      expect({ status: result.status, stderr: result.stderr }).toEqual({ status: 0, stderr: '' })
      expect(result.stdout).toContain('one was run for this call')
      for (const one of engines) await expectHeld(one.ready[1]!, 1, model.files)
    } finally {
      await Promise.all(engines.map((one) => one.stop()))
    }
  })
})

describe('other ways to reach the parts', () => {
  test('the engine over its Unix socket', async () => {
    const path = join(dir.path, 'engine.sock')
    const local = await startEngine(`unix:${path}`, 2)
    try {
      const { status, document } = await updateThere('--uds', path, '--endpoint', 'http://engine')
      expect(document.error).toBeUndefined()
      expect(status).toBe(0)
    } finally {
      await local.stop()
    }
  })

  test('the daemon over TCP, with its token and without', async () => {
    const token = join(dir.path, 'token')
    writeFileSync(token, 'secret-7\n', { mode: 0o600 })
    const listen = ['--listen', '127.0.0.1:0', '--token-file', token, '--allow-dir', dir.path]
    const tcp = await startDaemon(join(dir.path, 'tcp'), ...listen, '--ranks', '2')
    try {
      const refused = await update('--daemon', tcp.ready[1]!)
      expect(JSON.parse(refused.stdout).error.code).toBe('unauthorized')
      expect(refused.status).toBe(1)
      const taken = await update('--daemon', tcp.ready[1]!, '--token-file', token)
      expect({ status: taken.status, stderr: taken.stderr }).toEqual({ status: 0, stderr: '' })
    } finally {
      await tcp.stop()
    }
  })
})

test('the index decides: a tensor of a shard that it does not list is not loaded', async () => {
  const indexed = await makeModel('indexed', 6)
  const index = join(indexed.path, 'model.safetensors.index.json')
  const { weight_map } = JSON.parse(readFileSync(index, 'utf8'))
  delete weight_map['layers.3.weight']
  writeFileSync(index, JSON.stringify({ weight_map }))
  const taken = await updateThere('--checkpoint-path', indexed.path, '--checkpoint-name', 'indexed')
  expect(taken.document.error).toBeUndefined()
  const held = await request(socket, 'GET', '/v1/checkpoints/indexed')
  const names = held.body.tensor_list.map((tensor: { name: string }) => tensor.name)
  expect(names).toHaveLength(TENSORS.length - 1)
  expect(names).not.toContain('layers.3.weight')
})

describe('failures', () => {
  test('a missing shard is named and nothing is asked of the daemon', async () => {
    const broken = await makeModel('broken', 4)
    rmSync(broken.files[1]!)
    const { status, document } = await updateThere('--checkpoint-path', broken.path)
    expect(document.error.code).toBe('tensor_missing')
    expect(document.error.message).toContain(broken.files[1]!)
    expect(status).toBe(1)
  })

  test('ranks and endpoints that do not fit are wrong usage', async () => {
    const { status, document } = await updateThere('--inference-parallel-size', '8')
    expect(document.error.message).toContain('2 ranks')
    expect(status).toBe(2)
  })

  test('an engine that is not there is status 3', async () => {
    const nobody = ['--endpoint', 'http://127.0.0.1:1', '--ready-timeout', '0.5']
    const { status, document, stderr } = await updateThere(...nobody)
    expect(document.error.code).toBe('engine_unreachable')
    expect(status).toBe(3)
    // once, though it has tried several times
    const waits = stderr.split('\n').filter((line) => line.includes('waiting for the engine'))
    expect(waits).toHaveLength(1)
    expect(waits[0]).toContain('at http://127.0.0.1:1 (at most 0.5 s): ')
  })

  test('an engine that fails a bucket is status 1 with the state of the update', async () => {
    const faulty = await startEngine('127.0.0.1:0', 2, '--fault', 'error@0')
    try {
      const words = ['--endpoint', faulty.ready[1]!, '--timeout', '20', '--ready-timeout', '15']
      const { status, document } = await orTell(updateThere(...words), 40_000, faulty)
      expect(status).toBe(1)
      expect(document.error.code).toBe('engine_failed')
      expect(document.update.state).toBe('failed')
      expect(document.update.engines[0].result).toBe('failed')
    } finally {
      await faulty.stop()
    }
    expect((await updateThere()).status).toBe(0)
  })

  test.each(['Ctrl-C', 'ckpt abort'])(
    '%s aborts the update in the daemon, which is free again',
    async (how) => {
      const hanging = await startEngine('127.0.0.1:0', 2, '--fault', 'hang@0')
      const args = ['--endpoint', hanging.ready[1]!, '--inference-parallel-size', '2', '--json']
      const words = [
        'update',
        '--daemon',
        socket,
        '--checkpoint-path',
        model.path,
        '--timeout',
        '30',
      ]
      const child = Bun.spawn([...CKPT, ...words, ...args], { stdout: 'pipe', stderr: 'pipe' })
      try {
        const id = await untilRunning()
        if (how === 'Ctrl-C') child.kill('SIGINT')
        else {
          const there = ['--daemon', socket, '--reason', 'ckpt abort']
          const { status, stdout } = await run([...CKPT, 'abort', id, ...there])
          expect(status).toBe(0)
          expect(stdout).toContain(id)
        }
        const { error } = (await new Response(child.stdout).json()) as any
        expect(error.code).toBe('aborted')
        expect(error.message).toContain(how === 'Ctrl-C' ? 'interrupted by its client' : how)
        expect(await child.exited).toBe(1)
      } finally {
        await hanging.stop('SIGKILL')
      }
      expect((await updateThere()).status).toBe(0)
    },
  )

  test('a second update waits its turn, or with --if-busy fail is told the id of the first', async () => {
    await request(socket, 'POST', '/v1/checkpoints/busy/files', {
      files: model.files,
      replace: true,
    })
    // nobody starts workers for it
    const first = { update_id: 'first', timeout: 60, wait: false }
    await request(socket, 'POST', '/v1/checkpoints/busy/update', first)
    const refused = await updateThere('--if-busy', 'fail')
    expect(refused).toMatchObject({
      status: 1,
      document: { error: { code: 'update_running', update_id: 'first' } },
    })
    const waiting = updateThere()
    await untilStatus(({ running_update, queued }) => running_update === 'first' && queued === 1)
    await request(socket, 'POST', '/v1/updates/first/abort', {})
    expect((await waiting).document.error).toBeUndefined()
    expect((await waiting).status).toBe(0)
    await expectHeld(engine.ready[1]!, 2, model.files)
  })

  async function untilStatus(holds: (status: StatusAnswer) => boolean | Promise<boolean>) {
    for (const deadlineMs = performance.now() + 20_000; ; await Bun.sleep(20)) {
      const { body } = await request(socket, 'GET', '/v1/status')
      if (await holds(body as StatusAnswer)) return body as StatusAnswer
      if (performance.now() > deadlineMs) throw new Error(`waited in vain until ${holds}`)
    }
  }

  async function untilRunning(): Promise<string> {
    const { running_update } = await untilStatus(async ({ running_update: id }) => {
      if (id === null) return false
      return (await request(socket, 'GET', `/v1/updates/${id}`)).body.phase === 'transfer'
    })
    return running_update!
  }
})

test('--allow-dir and --allow-engine bound what a daemon reads and contacts', async () => {
  const path = join(mkdtempSync(join(dir.path, 'allow-')), 'ckpt.sock')
  const allowed = ['--allow-dir', model.path, '--allow-engine', 'http://127.0.0.1:1/api']
  const own = await startDaemon(path, '--uds', path, ...allowed)
  try {
    const call = async (route: string, body: object) => {
      const answer = await request(path, 'POST', `/v1/checkpoints/m/${route}`, body)
      return [answer.status, answer.body.error?.code]
    }
    expect(await call('files', { files: ['/etc/hostname'] })).toEqual([403, 'path_not_allowed'])
    expect(await call('files', { files: model.files })).toEqual([200, undefined])
    const update = (url: string) => call('update', { update_url: url, open_timeout: 0.1 })
    const route = 'collective_rpc'
    expect(await update(`http://127.0.0.1:1/${route}`)).toEqual([403, 'engine_not_allowed'])
    expect(await update(`http://127.0.0.1:1/api/${route}`)).toEqual([502, 'engine_unreachable'])
  } finally {
    await own.stop()
  }
})
