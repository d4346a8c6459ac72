import { expect, test } from 'bun:test'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { buildTable } from '@ckpt/core'
import { openLibrary, selectDevices, ZmqContext } from '@ckpt/cuda'
import { clockMs } from '../clock.ts'
import { BOARD_BYTES } from './board.ts'
import { DirectPlans } from './direct-plans.ts'
import { DirectRun } from './direct-run.ts'
import { PROGRESS_BYTES, type RankEvent, type RankMessage } from './messages.ts'
import { type KeptRun, Quarantine } from './quarantine.ts'
import type { RunHost } from './run-host.ts'

const RUN = 2

interface Stage {
  readonly run: DirectRun
  readonly dir: string
  readonly kept: KeptRun[]
  readonly reported: RankEvent[]
}

/** A run of an engine that has told nothing yet, for which these messages wait. */
function withRun(messages: RankMessage[], work: (stage: Stage) => void): void {
  const selection = selectDevices('host:1', 1)
  const library = openLibrary(selection.library)
  const context = new ZmqContext()
  const signal = library.signalCreate()
  const dir = mkdtempSync(`${tmpdir()}/ckpt-test-`)
  const kept: KeptRun[] = []
  const reported: RankEvent[] = []
  const host = {
    library,
    context,
    signal,
    rank: selection.ranks[0],
    spins: false,
    report: (_run: number, event: RankEvent) => reported.push(event),
    takeMessages: () => messages.splice(0),
    quarantine: (one: KeptRun) => kept.push(one),
    openedAnew: () => {},
    tend: () => {},
    remoteSources: { attach: () => [] },
  } as unknown as RunHost
  const plans = new DirectPlans()
  plans.keep('layout', { table: buildTable([]), sources: [] })
  const progress = new SharedArrayBuffer(PROGRESS_BYTES)
  const options = {
    run: RUN,
    address: `ipc://${dir}/rank-0.sock`,
    http: true,
    engine: 'http://engine',
    buffers: [],
    readings: [],
    openMs: 1000,
    deadlineMs: clockMs() + 1000,
    progress,
    layoutKey: 'layout',
    prepares: true,
    away: [],
    remotes: [],
    peers: [{ progress, signal, board: new SharedArrayBuffer(BOARD_BYTES) }],
    ranks: [0],
    member: 0,
  }
  try {
    work({ run: new DirectRun(host, options, plans), dir, kept, reported })
  } finally {
    library.signalDestroy(signal)
    context.close()
    rmSync(dir, { recursive: true })
  }
}

// another rank could not open, or the journal be written, or an abort came between
test('a run that ends before it has begun leaves no socket behind', () => {
  withRun([], ({ run, dir, kept }) => {
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
    expect({ done, empty, left }).toEqual({ done: true, empty: true, left: [] })
  })
})

// another rank was refused, or its own engine's map was
test('a preparation that is over before an engine has told where its weights lie is no failure', () => {
  const leave = { type: 'leave', run: RUN, reason: 'not so', leaveMs: 20 } as const
  withRun([leave], ({ run, kept, reported }) => {
    run.loop()
    expect(reported.map(({ type }) => type)).toEqual(['closed'])
    for (const { conversation } of kept) conversation?.socket.close()
  })
})
