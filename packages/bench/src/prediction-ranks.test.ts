import { expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openLibrary } from '@ckpt/cuda'
import { MIB } from './bench.ts'
import { sharedDeviceRows } from './prediction-ranks.ts'

test('updates of ranks that share a device have the buckets that are simulated, and every byte', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'ckpt-bench-test-'))
  const notes: string[] = []
  try {
    const context = {
      devices: 'host:1',
      sizes: [32 * MIB],
      models: [],
      dir,
      python: '',
      wheels: null,
      trace: '',
      note: (text: string) => void notes.push(text),
      open: openLibrary,
    }
    const rows = await Array.fromAsync(sharedDeviceRows(context, [2]))
    const [row] = rows
    const what = '2 ranks on one device, 32 MiB'
    // both parts of 64 tensors
    expect(row).toMatchObject({ case: what, compared: 128, wrong: 0, claims: [] })
    expect(row?.limit_gb_per_s).toBeGreaterThan(0)
    expect(row?.limit_gb_per_s).toBeLessThan(1000)
    expect(rows).toHaveLength(1)
    expect(notes.filter((note) => note.includes('measured beside the updates'))).toHaveLength(1)
  } finally {
    rmSync(dir, { recursive: true, force: true })
  }
}, 180_000)
