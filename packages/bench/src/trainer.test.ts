import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { python, run, type Scratch, scratch } from '../../../test/support/process.ts'
import { MIB } from './bench.ts'
import type { BenchDocument } from './document.ts'
import { parseOptions } from './options.ts'
import { CPU, gpuOf, rowsOf } from './trainer.ts'
import { workloadBytes, workloads } from './workloads.ts'

setDefaultTimeout(120_000)

const PYTHON = python()
if (PYTHON === null) console.log('skipped: no Python with torch (see .ci/run)')
const MAIN = join(import.meta.dir, 'main.ts')
const CASES = ['4 MiB, tensors in CPU memory, memory new', '4 MiB, tensors in CPU memory']

let dir: Scratch
beforeEach(() => {
  dir = scratch()
})
afterEach(() => dir.remove())

/** Runs the program, whose temporary directories must be gone afterwards. */
async function bench(interpreter: string, ...args: string[]) {
  const words = ['--json', '--only', 'trainer', '--python', interpreter, ...args]
  const temporary = scratch()
  try {
    const env = { TMPDIR: temporary.path }
    const { status, stdout, stderr } = await run([process.execPath, MAIN, ...words], env)
    expect(stderr).toBe('')
    expect(readdirSync(temporary.path)).toEqual([])
    return { status, document: JSON.parse(stdout) as BenchDocument }
  } finally {
    temporary.remove()
  }
}

function script(text: string): string {
  const path = join(dir.path, 'interpreter')
  writeFileSync(path, `#!/bin/sh\n${text}\n`, { mode: 0o700 })
  return path
}

describe.skipIf(PYTHON === null)('with a Python that has torch', () => {
  test('a trainer registers versions from CPU memory, and an engine has the last one', async () => {
    const { status, document } = await bench(PYTHON!, '--mib', '4')
    expect([status, document.ok, document.error]).toEqual([0, true, null])
    expect(document.rows.map((row) => row.case)).toEqual(CASES)
    expect(document.rows.map((row) => [row.runs, row.compared, row.wrong])).toEqual([
      [1, 0, 0],
      [6, 8, 0],
    ])
    for (const row of document.rows) {
      expect(row).toMatchObject({ bench: 'trainer', tensors: 8, bytes: 4 * (MIB + 2048) })
      expect(row).toMatchObject({ limit_gb_per_s: null, claims: [] })
      expect(row.p50_s).toBeGreaterThan(0)
      expect(row.p99_s).toBeGreaterThanOrEqual(row.p50_s)
    }
  })

  test('a tensor that is not in the engine as the trainer has it is counted', async () => {
    const other = `s/("layers.3.norm.weight": ")[0-9a-f]/\\1x/`
    const spoiling = script(`"${PYTHON}" "$@" | sed -E '${other}'`)
    const { status, document } = await bench(spoiling, '--mib', '4')
    expect([status, document.ok, document.wrong, document.error]).toEqual([1, false, 1, null])
    expect(document.rows.map((row) => row.wrong)).toEqual([0, 1])
  })
})

test('what ends the trainer is told', async () => {
  const failing = script('echo "no module named torch" >&2; exit 7')
  const { status, document } = await bench(failing, '--model', 'moe')
  expect([status, document.rows]).toEqual([1, []])
  expect(document.error!.message).toEndWith(
    'trainer.py ended with status 7:\nno module named torch\n',
  )
})

test('what is no report is told', async () => {
  const { document } = await bench(script(`echo '{"seconds": [1]}'`), '--mib', '1')
  expect(document.error!.message).toContain('sha256 must be an object (was missing)')
})

test('it runs only when it is named', () => {
  expect(parseOptions([]).only).not.toContain('trainer')
})

describe('rows', () => {
  const [dense] = workloads([], ['dense'])
  const bytes = workloadBytes(dense!)
  const checked = { compared: 399, wrong: 0 }
  /** The first two calls take five seconds, the others as long as these rates say. */
  const reportOf = (rates: readonly number[], d2h_gb_per_s: number[]) => {
    return { seconds: [5, 5, ...rates.map((rate) => bytes / rate / 1e9)], d2h_gb_per_s, sha256: {} }
  }

  test('the first call, and those after the second with the median of the copies as limit', () => {
    const report = reportOf([48, 50, 52], [54, 20, 55])
    const [first, kept] = rowsOf(dense!, gpuOf(1), report, checked, true)
    expect(first).toMatchObject({ case: 'dense, tensors on the GPU, memory new', p50_s: 5 })
    expect(first).toMatchObject({ runs: 1, compared: 0, limit_gb_per_s: null, claims: [] })
    expect(kept).toMatchObject({ bench: 'trainer', case: 'dense, tensors on the GPU', bytes })
    expect(kept).toMatchObject({ tensors: 399, runs: 3, limit_gb_per_s: 54, ...checked })
    expect(kept!.gb_per_s).toBeCloseTo(50)
    expect(kept!.claims).toMatchObject([
      { what: 'trainer dense, tensors on the GPU, of the D2H rate', unit: '%', bound: 90 },
    ])
    expect(kept!.claims[0]!.figure).toBeCloseTo((50 / 54) * 100)
  })

  const bounds = [
    { place: gpuOf(0), rate: 49, holds: true },
    { place: gpuOf(0), rate: 48, holds: false },
    { place: CPU, rate: 25.1, holds: true },
    { place: CPU, rate: 24.9, holds: false },
  ]
  for (const { place, rate, holds } of bounds) {
    test(`${place.words}: ${rate} GB/s ${holds ? 'is enough' : 'falls short'}`, () => {
      const report = reportOf([rate], place === CPU ? [] : [54])
      const [, kept] = rowsOf(dense!, place, report, checked, true)
      expect(kept!.claims.map((claim) => claim.holds)).toEqual([holds])
      const [, free] = rowsOf(dense!, place, report, checked, false)
      expect(free!.claims).toEqual([])
    })
  }
})
