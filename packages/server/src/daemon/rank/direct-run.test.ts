import { expect, test } from 'bun:test'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { buildTable } from '@ckpt/core'
import { openLibrary, selectDevices, ZmqContext } from '@ckpt/cuda'
import { clockMs } from '../clock.ts'
import { DirectPlans } from './direct-plans.ts'
import { DirectRun } from './direct-run.ts'
import { PROGRESS_BYTES } from './messages.ts'
import { type KeptRun, Quarantine } from './quarantine.ts'
import type { RunHost } from './run-host.ts'

// another rank could not open, or the journal be written, or an abort came between
test('a run that ends before it has begun leaves no socket behind', () => {
  const selection = selectDevices('host:1', 1)
  const library = openLibrary(selection.library)
  const context = new ZmqContext()
  const signal = library.signalCreate()
  const dir = mkdtempSync(`${tmpdir()}/ckpt-test-`)
  const kept: KeptRun[] = []
  const host = {
    library,
    context,
    signal,
    rank: selection.ranks[0],
    spins: false,
    report: () => {},
    takeMessages: () => [],
    quarantine: (one: KeptRun) => kept.push(one),
    openedAnew: () => {},
    tend: () => {},
    remoteSources: { attach: () => [] },
  } as unknown as RunHost
  const plans = new DirectPlans()
  plans.keep('layout', { table: buildTable([]), sources: [] })
  const options = {
    run: 2,
    address: `ipc://${dir}/rank-0.sock`,
    http: true,
    engine: 'http://engine',
    buffers: [],
    readings: [],
    openMs: 1000,
    deadlineMs: clockMs() + 1000,
    progress: new SharedArrayBuffer(PROGRESS_BYTES),
    layoutKey: 'layout',
    prepares: false,
    away: [],
    remotes: [],
    peers: [null],
    ranks: [0],
    member: 0,
  }
  const run = new DirectRun(host, options, plans)
  run.close()
  const quarantine = new Quarantine({
    settled: () => {},
    freed: () => {},
    kept: () => {},
    left: () => {},
  })
  for (const one of kept) quarantine.keep(one)
  // nobody has posted anything to the engine, so no answer ever comes that would let it go
  const done = kept.every(({ conversation }) => conversation === null)
  quarantine.sweep()
  const left = readdirSync(dir)
  const { empty } = quarantine
  quarantine.freeAll()
  library.signalDestroy(signal)
  context.close()
  rmSync(dir, { recursive: true })
  expect({ done, empty, left }).toEqual({ done: true, empty: true, left: [] })
})
