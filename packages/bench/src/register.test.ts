import { describe, expect, setDefaultTimeout, test } from 'bun:test'
import { type Library, openLibrary } from '@ckpt/cuda'
import { type Bench, MIB } from './bench.ts'
import type { BenchDocument } from './document.ts'
import { register, registerBench } from './register.ts'
import { ON_PROCESS, runBenches } from './run.ts'

setDefaultTimeout(120_000)

/** Runs `register` with 1 MiB and a library that some of whose members are replaced. */
async function run(change: (real: Library) => Partial<Library>, bench: Bench, ...args: string[]) {
  const printed: string[] = []
  const surroundings = {
    ...ON_PROCESS,
    print: async (text: string) => void printed.push(text),
    open: (options: Parameters<typeof openLibrary>[0]) => {
      const real = openLibrary(options)
      const changed = change(real)
      return new Proxy(real, {
        get: (_, name) => {
          const value = changed[name as keyof Library] ?? real[name as keyof Library]
          return typeof value === 'function' ? value.bind(real) : value
        },
      })
    },
    signal: new AbortController().signal,
  }
  const words = ['--only', 'register', '--mib', '1', ...args]
  const status = await runBenches(words, surroundings, [bench])
  return { status, text: printed.join('\n') }
}

const CASES = ['page cache', '/dev/shm'].flatMap((place) =>
  ['memory new', 'memory kept', 'in place'].map((name) => `1 MiB ${place}, ${name}`),
)

describe('bench register', () => {
  test('has a row for each place and way, and no claims with the host library', async () => {
    const { status, text } = await run(() => ({}), registerBench(0), '--json')
    const document = JSON.parse(text) as BenchDocument
    expect([status, document.wrong, document.live_objects]).toEqual([0, 0, 0])
    expect(document.notes).toEqual([])
    expect(document.rows.map((row) => row.case)).toEqual(CASES)
    expect(document.rows.flatMap(({ claims }) => claims)).toEqual([])
  })

  test('bytes in memory that are not those of the file are counted', async () => {
    const { status, text } = await run(
      (real) => ({
        bufferSha256: (buffer, offset, bytes) => real.bufferSha256(buffer, offset, bytes - 1),
      }),
      register,
      '--json',
    )
    const document = JSON.parse(text) as BenchDocument
    expect([status, document.ok, document.error]).toEqual([1, false, null])
    expect(document.rows.map((row) => row.case)).toEqual(CASES)
    for (const row of document.rows) {
      expect(row.wrong).toBe(row.compared)
      expect(row.compared).toBeGreaterThan(0)
    }
  })

  test('a rate that falls short is told and makes the exit status 1', async () => {
    const never = { 'page cache': 1e6, '/dev/shm': 1e6 }
    const bench = registerBench(MIB, { 'memory kept': never, 'in place': never })
    const { status, text } = await run(() => ({ kind: 'cuda' }), bench)
    expect(status).toBe(1)
    const told = text.split('\n').filter((line) => line.includes('FALLS SHORT'))
    expect(told.map((line) => line.replace(/[\d.]+ %, /, ''))).toEqual([
      '# FALLS SHORT: register 1 MiB page cache, memory kept, of the limit at least 1000000 %',
      '# FALLS SHORT: register 1 MiB page cache, in place, of the limit at least 1000000 %',
      '# FALLS SHORT: register 1 MiB /dev/shm, memory kept, of the limit at least 1000000 %',
      '# FALLS SHORT: register 1 MiB /dev/shm, in place, of the limit at least 1000000 %',
    ])
    expect(text).toMatch(/# FAILED: 0 of \d+ ranges wrong, nothing left/)
  })

  test('nothing is claimed of less than 4 GiB', async () => {
    const { status, text } = await run(() => ({ kind: 'cuda' }), register)
    expect(status).toBe(0)
    expect(text).not.toMatch(/FALLS SHORT|holds:/)
  })
})
