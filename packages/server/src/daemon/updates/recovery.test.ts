import { expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { RunningEngine } from '../../engines/reference/index.ts'
import { processStart } from './journal-processes.ts'
import { TestDir } from '../registry/testing/fixture.ts'
import { createUpdates } from './updates.ts'
import {
  type Bench,
  NAME,
  requireWeights,
  tensorsOf,
  weightsOf,
  withUpdates,
} from './testing/fixture.ts'

setDefaultTimeout(120_000)

/** A daemon's inside in a process of its own, in the middle of an update of `engine`. */
async function runningDaemon(stateDir: string, engine: RunningEngine) {
  const program = join(import.meta.dir, 'testing/recovery-program.ts')
  const url = `${engine.url}/collective_rpc`
  const child = Bun.spawn([process.execPath, program, stateDir, url], { stderr: 'inherit' })
  const reader = child.stdout.getReader()
  let text = ''
  while (!text.includes('"progress"')) {
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
    const next = await createUpdates({ ...options, stateDir: state.path }, registry)
    const beganMs = performance.now()
    await next.recover()
    expect(performance.now() - beganMs).toBeLessThan(10_000)
    // answers as soon as no update runs in the engine
    expect((await weightsOf(engine)).torn).toBe(true)
    expect(performance.now() - beganMs).toBeLessThan(11_000)
    expect(sharedMemoryOf(child.pid)).toEqual([])
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
    expect((await weightsOf(engine)).torn).toBe(true)
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
      torn: [MARK],
    }
    const marked = [{ url: MARK.url, dialect: 'D4', torn: true, version: null }]
    expect(await recovered(bench, JSON.stringify(journal))).toEqual(marked as never)
    expect(readdirSync(outside.path)).toEqual([])
    const shared = `/dev/shm/ckpt-${process.pid}-0-spared`
    writeFileSync(shared, '')
    const start = await processStart(process.pid)
    const living = { ...journal, pid: process.pid, process_start: start }
    expect(await recovered(bench, JSON.stringify(living))).toEqual(marked as never)
    expect(existsSync(shared)).toBe(true)
    // the same pid, but another process
    const later = { ...living, process_start: start! - 1 }
    expect(await recovered(bench, JSON.stringify(later))).toEqual(marked as never)
    expect(existsSync(shared)).toBe(false)
    outside.remove()
  })
})
