import { afterEach, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, readdirSync, readFileSync, unlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { ZmqContext } from '@ckpt/cuda'
import type { RankPool } from '../rank/pool.ts'
import { EngineBook } from './engines.ts'
import { Journal, type JournalDocument } from './journal.ts'
import { processStart } from './journal-processes.ts'
import { recoverFrom } from './recovery.ts'
import { TestDir } from '../registry/testing/fixture.ts'
import { createUpdates } from './updates.ts'
import {
  type Bench,
  NAME,
  requireWeights,
  tensorsOf,
  until,
  weightsOf,
  withUpdates,
} from './testing/fixture.ts'
import { scriptedWorker } from './testing/scripted-worker.ts'

setDefaultTimeout(120_000)

const children: Bun.Subprocess[] = []

// what a test that failed has left running
afterEach(() => {
  for (const child of children.splice(0)) child.kill('SIGKILL')
})

/** A daemon's inside in a process of its own, in the middle of an update of `engine`. */
async function runningDaemon(stateDir: string, engine: { url: string }, pause = 'none') {
  return daemonAt('"progress"', stateDir, `${engine.url}/collective_rpc`, pause)
}

/** A daemon's inside in a process of its own that has printed `event`. */
async function daemonAt(event: string, ...args: string[]) {
  const program = join(import.meta.dir, 'testing/recovery-program.ts')
  const child = Bun.spawn([process.execPath, program, ...args], { stderr: 'inherit' })
  children.push(child)
  const reader = child.stdout.getReader()
  let text = ''
  while (!text.includes(event)) {
    const { value, done } = await reader.read()
    if (done) throw new Error(`the program has ended: ${text}`)
    text += new TextDecoder().decode(value)
  }
  return {
    child,
    async rest(): Promise<string> {
      for (let read = await reader.read(); !read.done; read = await reader.read()) {
        text += new TextDecoder().decode(read.value)
      }
      return text
    },
  }
}

async function openElsewhere(): Promise<void> {
  const library = Bun.resolveSync('@ckpt/cuda', import.meta.dir)
  const script = `(await import(${JSON.stringify(library)})).openLibrary({ kind: 'host' })`
  expect(await Bun.spawn([process.execPath, '-e', script], { stderr: 'inherit' }).exited).toBe(0)
}

function sharedMemoryOf(pid: number): string[] {
  return readdirSync('/dev/shm').filter((name) => name.startsWith(`ckpt-${pid}-`))
}

test('after SIGKILL the next start releases the waiting engine and clears what was left', async () => {
  await withUpdates(async ({ options, registry, engine: start, register }) => {
    // the engine itself would wait for two minutes
    const engine = await start({ disconnectGraceMs: 120_000 })
    const state = new TestDir()
    const { child } = await runningDaemon(state.path, engine)
    child.kill('SIGKILL')
    await child.exited
    expect(sharedMemoryOf(child.pid).length).toBeGreaterThan(0)
    expect(readdirSync(join(state.path, 'engines')).length).toBeGreaterThan(0)
    const journal = JSON.parse(readFileSync(join(state.path, 'journal.json'), 'utf8'))
    expect(journal).toMatchObject({
      pid: child.pid,
      conversations: [
        { rank: 0, update_id: 'killed', engine_url: `${engine.url}/collective_rpc` },
        { rank: 1 },
      ],
    })
    // shared memory goes when a process opens the library; this one has opened it long ago
    await openElsewhere()
    expect(sharedMemoryOf(child.pid)).toEqual([])
    const next = await createUpdates({ ...options, stateDir: state.path }, registry)
    const beganMs = performance.now()
    await next.recover()
    expect(performance.now() - beganMs).toBeLessThan(10_000)
    // answers as soon as no update runs in the engine
    expect((await weightsOf(engine)).torn).toBe(true)
    expect(performance.now() - beganMs).toBeLessThan(11_000)
    expect(readdirSync(join(state.path, 'engines'))).toEqual([])
    expect(next.status().engines).toMatchObject([{ torn: true }])
    const tensors = tensorsOf(6, 100_000, 3)
    await register(tensors)
    await next.start(NAME, { update_url: `${engine.url}/collective_rpc`, timeout: 20 }).done
    expect(next.status().engines).toMatchObject([{ torn: false }])
    await next.close('the test is over')
    expect(readdirSync(state.path)).toEqual(['engines'])
    state.remove()
    const { ranks } = await weightsOf(engine)
    for (const name of Object.keys(tensors)) expect(ranks[0]!.tensors).toHaveProperty([name])
  })
})

test('SIGTERM during an update aborts it, releases the engine and leaves nothing but the torn mark', async () => {
  await withUpdates(async ({ registry, options, register, engine: start }) => {
    const engine = await start({ disconnectGraceMs: 120_000 })
    const state = new TestDir()
    const { child, rest } = await runningDaemon(state.path, engine)
    const beganMs = performance.now()
    child.kill('SIGTERM')
    const text = await rest()
    expect(await child.exited).toBe(0)
    expect(performance.now() - beganMs).toBeLessThan(8000)
    expect(text).toContain('"shutting_down"')
    expect(text).toContain('"liveObjects":0')
    // answers as soon as no update runs in the engine, which by itself would wait for its request's minute
    expect((await weightsOf(engine)).torn).toBe(true)
    expect(performance.now() - beganMs).toBeLessThan(12_000)
    expect(sharedMemoryOf(child.pid)).toEqual([])
    expect(readdirSync(join(state.path, 'engines'))).toEqual([])
    const next = await createUpdates({ ...options, stateDir: state.path }, registry)
    await next.recover()
    expect(next.status().engines).toMatchObject([{ torn: true }])
    const tensors = tensorsOf(20, 2 ** 19 - 256, 3)
    await register(tensors)
    await next.start(NAME, { update_url: `${engine.url}/collective_rpc`, timeout: 20 }).done
    await requireWeights(engine, tensors)
    await next.close('the test is over')
    state.remove()
  })
})

test('what a killed daemon had paused is resumed by the update that heals it', async () => {
  await withUpdates(async ({ options, registry, engine: start, register }) => {
    const engine = await start({ disconnectGraceMs: 120_000 })
    const isPaused = async () =>
      ((await (await fetch(`${engine.url}/is_paused`)).json()) as { is_paused: boolean }).is_paused
    const state = new TestDir()
    const { child } = await runningDaemon(state.path, engine, 'wait')
    child.kill('SIGKILL')
    await child.exited
    const next = await createUpdates({ ...options, stateDir: state.path }, registry)
    await next.recover()
    expect([next.status().engines[0]?.torn, await isPaused()]).toEqual([true, true])
    const tensors = tensorsOf(6, 100_000, 3)
    await register(tensors)
    const request = { update_url: `${engine.url}/collective_rpc`, timeout: 20 }
    await next.start(NAME, { ...request, pause: 'wait' }).done
    expect([next.status().engines[0]?.torn, await isPaused()]).toEqual([false, false])
    await next.close('the test is over')
    expect(readdirSync(state.path)).toEqual(['engines'])
    state.remove()
  })
})

test('a worker that comes after its update has failed and its daemon was killed is told to raise by the next one', async () => {
  await withUpdates(async ({ options, registry }) => {
    // an engine that takes the request and is busy with something else
    const engine = Bun.serve({
      hostname: '127.0.0.1',
      port: 0,
      idleTimeout: 0,
      routes: {
        '/health': new Response(),
        '/collective_rpc': { POST: () => new Promise<Response>(() => {}) },
      },
      fetch: () => new Response('', { status: 404 }),
    })
    const state = new TestDir()
    const url = `http://127.0.0.1:${engine.port}/collective_rpc`
    const { child } = await daemonAt('"failed"', state.path, url, 'none', '2')
    const read = () => JSON.parse(readFileSync(join(state.path, 'journal.json'), 'utf8'))
    await until(() => read().conversations.every((one: { ended?: true }) => one.ended))
    expect(read().conversations).toMatchObject([{ rank: 0 }, { rank: 1 }])
    child.kill('SIGKILL')
    await child.exited
    const addresses: string[] = read().conversations.map((one: { address: string }) => one.address)

    const next = await createUpdates({ ...options, stateDir: state.path }, registry)
    await next.recover()
    // it was sent nothing
    expect(next.status().engines).toEqual([])
    expect(read().conversations).toHaveLength(2)
    const context = new ZmqContext()
    const workers = addresses.map((address) => scriptedWorker(context, address, () => {}))
    await until(() => workers.every(({ seen }) => seen.length === 2))
    for (const { seen } of workers) expect(seen).toEqual(['error', 'error'])
    for (const worker of workers) worker.close()
    await until(() => read().conversations.length === 0)
    context.close()
    await next.close('the test is over')
    expect(readdirSync(state.path)).toEqual(['engines'])
    expect(readdirSync(join(state.path, 'engines'))).toEqual([])
    state.remove()
    await engine.stop(true)
  })
})

const MARK = {
  url: 'http://127.0.0.1:1/collective_rpc',
  uds: null,
  update_id: 'old',
  dialect: 'D4',
  paused: false,
  restart_needed: false,
  listener: null,
}

async function recovered(bench: Bench, journal: string) {
  const state = new TestDir()
  state.write('journal.json', journal)
  const updates = await createUpdates({ ...bench.options, stateDir: state.path }, bench.registry)
  await updates.recover()
  const { engines } = updates.status()
  await updates.close('the test is over')
  state.remove()
  return engines
}

test('a journal that cannot be read is left alone', async () => {
  await withUpdates(async (bench) => {
    for (const text of ['{', '{"format":2}', '']) expect(await recovered(bench, text)).toEqual([])
  })
})

test('a journal makes us bind nowhere but in the directory of the engines, and spares a living process', async () => {
  await withUpdates(async (bench) => {
    const outside = new TestDir()
    const address = `ipc://${outside.path}/rank-0-0123456789abcdef.sock`
    const conversation = { address, rank: 0, dialect: null, engine_url: null, uds: null }
    const journal = {
      format: 1,
      pid: 2 ** 22 + 1,
      process_start: null,
      socket_dir: `${bench.dir.path}/engines`,
      conversations: [{ ...conversation, update_id: 'old', version: null }],
      engines: [MARK],
    }
    const state = { torn: true, updated: false, version: null }
    const rates = expect.objectContaining({ from: 'default' })
    const marked = [{ url: MARK.url, dialect: 'D4', ...state, rates }]
    expect(await recovered(bench, JSON.stringify(journal))).toEqual(marked as never)
    expect(readdirSync(outside.path)).toEqual([])
    // what this process holds in shared memory is not a dead one's, whatever the journal says of its pid
    const shared = `/dev/shm/ckpt-${process.pid}-0-0123456789abcdef`
    writeFileSync(shared, '')
    const start = await processStart(process.pid)
    const living = { ...journal, pid: process.pid, process_start: start }
    expect(await recovered(bench, JSON.stringify(living))).toEqual(marked as never)
    const later = { ...living, process_start: start! - 1 }
    expect(await recovered(bench, JSON.stringify(later))).toEqual(marked as never)
    expect(existsSync(shared)).toBe(true)
    unlinkSync(shared)
    outside.remove()
  })
})

const CUT_OFF = {
  format: 1 as const,
  pid: 2 ** 22 + 1,
  process_start: null as number | null,
  socket_dir: '/nowhere',
  conversations: [
    {
      address: 'ipc:///nowhere/rank-0-0123456789abcdef.sock',
      rank: 0,
      dialect: 'D4' as const,
      engine_url: 'http://127.0.0.1:2/collective_rpc',
      uds: null,
      update_id: 'cut-off',
      version: null,
    },
  ],
  engines: [
    { ...MARK, dialect: 'D4' as const },
    { ...MARK, dialect: null, url: 'http://127.0.0.1:2', update_id: null, paused: true },
  ],
}

test('what a predecessor left is taken over in one write, before anything else is done', async () => {
  const state = new TestDir()
  const { journal } = await Journal.open(state.path, state.path)
  const read = () => JSON.parse(readFileSync(join(state.path, 'journal.json'), 'utf8'))
  const seen: JournalDocument[] = []
  // what a start that is killed while it releases engines leaves to the one after it
  const pool = {
    get links() {
      seen.push(read())
      return []
    },
    keeps: () => false,
  } as unknown as RankPool
  await recoverFrom(CUT_OFF, pool, new EngineBook(journal), journal)
  const engines = [
    CUT_OFF.engines[0],
    { ...CUT_OFF.engines[1], dialect: 'D4', update_id: 'cut-off' },
  ]
  const { conversations, socket_dir } = CUT_OFF
  expect(seen).toMatchObject([{ pid: process.pid, conversations, socket_dir, engines }] as never)
  expect(read()).toMatchObject({ conversations: [], socket_dir: state.path, engines })
  state.remove()
})

test('marks of a predecessor that seems to live are not lost', async () => {
  const state = new TestDir()
  const { journal } = await Journal.open(state.path, state.path)
  const living = { ...CUT_OFF, pid: process.pid, process_start: await processStart(process.pid) }
  await recoverFrom(
    living,
    { links: [], keeps: () => false } as unknown as RankPool,
    new EngineBook(journal),
    journal,
  )
  await journal.close()
  const { left } = await Journal.open(state.path, state.path)
  expect(left?.engines.map((mark) => mark.update_id)).toEqual(['old', 'cut-off'])
  state.remove()
})

test('a start does not wait for workers of updates that had ended, and forgets them in time', async () => {
  await withUpdates(async ({ options, registry }) => {
    const state = new TestDir()
    const socketDir = join(state.path, 'engines')
    const address = `ipc://${socketDir}/rank-0-${'0'.repeat(32)}.sock`
    const found = async () => {
      const text = await Bun.file(join(state.path, 'journal.json')).text()
      return (JSON.parse(text) as JournalDocument).conversations.length
    }
    for (const [agoMs, left] of [
      [1000, 1],
      [3_600_000, 0],
    ] as const) {
      const conversation = { address, rank: 0, dialect: 'D4', engine_url: null, uds: null }
      const document = {
        format: 1,
        pid: 2 ** 22 + 1,
        process_start: 1,
        socket_dir: socketDir,
        engines: [],
        conversations: [
          {
            ...conversation,
            update_id: 'u',
            version: null,
            ended: true,
            ended_ms: Date.now() - agoMs,
          },
        ],
      }
      await Bun.write(join(state.path, 'journal.json'), JSON.stringify(document))
      const updates = await createUpdates({ ...options, stateDir: state.path }, registry)
      const startMs = performance.now()
      await updates.recover()
      expect(performance.now() - startMs).toBeLessThan(1500)
      expect(await found()).toBe(left)
      await updates.close('the test is over')
    }
    state.remove()
  })
})
