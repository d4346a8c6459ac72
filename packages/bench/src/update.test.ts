import { expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openLibrary } from '@ckpt/cuda'
import { MIB } from './bench.ts'
import { layersOf } from './checkpoint.ts'
import { modelRow } from './update.ts'

test('the row of a model times twelve updates and compares every tensor', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'ckpt-bench-update-'))
  try {
    const context = {
      devices: 'host:1',
      sizes: [],
      models: [],
      dir,
      python: '',
      wheels: null,
      trace: '',
      note: () => {},
      open: openLibrary,
    }
    const workload = { name: 'small', tensors: layersOf(4 * MIB), model: true }
    const row = await modelRow(context, workload)
    expect(row).toMatchObject({ case: 'small, whole call', wrong: 0 })
    expect(row.runs).toBeGreaterThanOrEqual(12)
    expect(row.compared).toBeGreaterThanOrEqual(2 * workload.tensors.length)
    expect(row.limit_gb_per_s).toBeGreaterThan(0)
  } finally {
    rmSync(dir, { recursive: true, force: true })
  }
}, 120_000)
