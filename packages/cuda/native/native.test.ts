import { dlopen } from 'bun:ffi'
import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const script = join(import.meta.dir, 'build.sh')
const buildTimeoutMs = 300_000

function build(...args: string[]) {
  const run = Bun.spawnSync(['bash', script, ...args], { stdout: 'pipe', stderr: 'pipe' })
  return { exitCode: run.exitCode, output: run.stdout.toString() + run.stderr.toString() }
}

function hasSanitizer(sanitizer: string) {
  const found = build('probe', sanitizer).exitCode === 0
  if (!found) console.warn(`skipped: the C++ compiler has no working -fsanitize=${sanitizer} here`)
  return found
}

/** Of LeakSanitizer that fails itself, where a thread ends while it looks: it has not looked then. */
const NOT_LOOKED = 'LeakSanitizer has encountered a fatal error'

function buildAndRun(target: string) {
  const first = build(target)
  return first.output.includes(NOT_LOOKED) ? build(target) : first
}

function expectAllPassed(target: string) {
  const { exitCode, output } = buildAndRun(target)
  const counts = /^(\d+) passed, (\d+) failed, (\d+) skipped$/m.exec(output)
  if (exitCode !== 0 || counts === null) throw new Error(output)
  expect(Number(counts[1])).toBeGreaterThan(40)
  expect(Number(counts[2])).toBe(0)
  // what is between processes needs UCX
  const withoutUcx = output.match(/: skipped \(UCX cannot be opened.*\)$/gm) ?? []
  if (withoutUcx.length > 0) console.warn(`${withoutUcx.length} tests${withoutUcx[0]}`)
  expect(Number(counts[3])).toBe(withoutUcx.length)
}

describe('the C++ tests of the host library', () => {
  test('pass', () => expectAllPassed('test'), buildTimeoutMs)

  test.skipIf(!hasSanitizer('address'))(
    'pass under AddressSanitizer, which finds no leak either',
    () => expectAllPassed('asan'),
    buildTimeoutMs,
  )

  test.skipIf(!hasSanitizer('thread'))(
    'pass under ThreadSanitizer',
    () => expectAllPassed('tsan'),
    buildTimeoutMs,
  )
})

describe('the C++ tests of the CUDA library', () => {
  test.skipIf(Bun.which('nvcc') === null)(
    'are built, and pass where there is a device',
    () => {
      const { exitCode, output } = build('cuda-test')
      if (exitCode === 77) {
        expect(output).toContain('skipped: no CUDA device')
        return
      }
      const counts = /^(\d+) passed, (\d+) failed, (\d+) skipped$/m.exec(output)
      if (exitCode !== 0 || counts === null) throw new Error(output)
      expect(Number(counts[1])).toBeGreaterThan(40)
    },
    buildTimeoutMs,
  )
})

describe('build.sh', () => {
  test('does nothing when the library is up to date', () => {
    expect(build('host').exitCode).toBe(0)
    expect(build('host')).toEqual({ exitCode: 0, output: '' })
  }, 60_000)

  test('answers an unknown word with its usage', () => {
    const { exitCode, output } = build('nonsense')
    expect(exitCode).toBe(2)
    expect(output).toContain('build.sh asan')
  })

  test('says what to install when there is no compiler', () => {
    const run = Bun.spawnSync(['/bin/bash', script, 'host'], {
      env: { PATH: coreutilsOnly, CXX: '' },
      stderr: 'pipe',
    })
    expect(run.exitCode).toBe(1)
    expect(run.stderr.toString()).toContain('apt install g++')
  })
})

const folder = mkdtempSync(join(tmpdir(), 'ckpt-native-'))
const coreutilsOnly = join(folder, 'bin')

beforeAll(() => {
  const tools = ['dirname', 'nproc', 'head', 'mkdir']
  Bun.spawnSync(['mkdir', coreutilsOnly])
  for (const tool of tools) Bun.spawnSync(['ln', '-s', Bun.which(tool) ?? tool, coreutilsOnly])
})

afterAll(() => rmSync(folder, { recursive: true }))

describe('the host library within Bun', () => {
  // The kernel tells of a broken lease with a signal: it must reach the library's thread and nothing else.
  test('gives a broken lease up without a signal for Bun', async () => {
    expect(build('host').exitCode).toBe(0)
    const library = dlopen(join(import.meta.dir, '../lib/libckpt_host.so'), {
      ckpt_file_open: { args: ['buffer', 'buffer'], returns: 'i32' },
      ckpt_file_lease: { args: ['u32', 'u32'], returns: 'i32' },
      ckpt_file_check: { args: ['u32'], returns: 'i32' },
      ckpt_file_close: { args: ['u32'], returns: 'i32' },
    }).symbols
    const path = join(folder, 'leased')
    writeFileSync(path, 'weights')
    const file = new Uint32Array(1)
    expect(library.ckpt_file_open(Buffer.from(`${path}\0`), file)).toBe(0)
    expect(library.ckpt_file_lease(file[0]!, 0)).toBe(0)
    expect(library.ckpt_file_check(file[0]!)).toBe(0)
    const writer = Bun.spawn(['sh', '-c', 'printf changed > "$0"', path])
    expect(await writer.exited).toBe(0)
    expect(library.ckpt_file_check(file[0]!)).toBe(8) // CKPT_ERR_CHANGED
    expect(library.ckpt_file_close(file[0]!)).toBe(0)
  }, 60_000)
})
