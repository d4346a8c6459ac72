import { expect, setDefaultTimeout, test } from 'bun:test'
import { join } from 'node:path'
import { CkptError } from '@ckpt/core'
import { type Library, openLibrary, selectDevices } from '@ckpt/cuda'
import { TestDir } from '../registry/testing/fixture.ts'
import { RankTeam } from '../updates/team.ts'
import type { RankInfo } from '../types.ts'
import { RankLink } from './link.ts'
import { until } from '../updates/testing/fixture.ts'
import type { OpenOptions, RankMessage } from './messages.ts'
import type { StartThread, ThreadEvents } from './thread.ts'
import { clockMs } from '../clock.ts'
import { RankPool } from './pool.ts'
import { planInput, RING_BYTES } from './testing/one-rank.ts'

setDefaultTimeout(60_000)

const OPENING = {
  planKey: 'none',
  ringBytes: 2 ** 20,
  buffers: [],
  readings: [],
  remotes: [],
  openMs: 1000,
}
const FAILURE = { code: 'aborted', message: 'by the test' } as const

test('a rank whose Worker is stuck holds the checkpoint until it has closed', async () => {
  const dir = new TestDir()
  const { library: options, ranks } = selectDevices('host:1', 1)
  const pool = await RankPool.start(options, openLibrary(options), ranks)
  const [link] = await pool.use([0])
  // blocks the Worker: nobody connects there
  const address = `ipc://${dir.path}/stuck.sock`
  void link!.request({ type: 'release_left', cutOff: [address], ended: [], limitMs: 10_000 })
  const team = new RankTeam(1, [link!], () => {})
  const opening = team.open({ ...OPENING, deadlineMs: clockMs() + 5000 }, () => ({
    address: null,
    http: false,
    engine: null,
    dialect: null,
  }))
  const refused = opening.then(
    () => 'opened',
    () => 'refused',
  )
  await Bun.sleep(100)
  team.abort(FAILURE, 100)
  expect(team.settling).not.toBeNull()
  expect(await refused).toBe('refused')
  await team.settling
  expect(team.settling).toBeNull()
  await pool.close()
  dir.remove()
})

test('of a Worker that ends during a run the ring stays counted and the checkpoint goes when its thread has ended', async () => {
  const { library: options, ranks } = selectDevices('host:1', 1)
  const native = openLibrary(options)
  const dead: string[] = []
  const told = (failure: { code: string }) => dead.push(failure.code)
  const pool = await RankPool.start(options, native, ranks, {
    failed: () => {},
    dead: told,
    left: () => {},
  })
  const [link] = await pool.use([0])
  const events: string[] = []
  link!.listen(7, 2 ** 20, (event) => events.push(event.type))
  const settled = link!.settled(7)
  await link!.close()
  await settled
  expect(events).toEqual(['failed', 'closed'])
  expect(pool.quarantinedBytes).toBe(2 ** 20)
  const [fresh] = await pool.use([0])
  expect(fresh).not.toBe(link!)
  expect(fresh!.dead).toBeNull()
  expect(pool.quarantinedBytes).toBe(2 ** 20)
  expect(dead).toHaveLength(1)
  await pool.close()
})

test('every rank has its abort bit before any is told why, and so can end the group', async () => {
  const { library: options, ranks } = selectDevices('host:2', 2)
  const pool = await RankPool.start(options, openLibrary(options), ranks)
  const links = await pool.use([0, 1])
  const order: string[] = []
  for (const link of links) noteAborts(link, order)
  for (const link of links) await link.request({ type: 'plan', key: 'none', input: planInput(1) })
  const team = new RankTeam(1, links, () => {})
  const alone = { address: null, http: false, engine: null, dialect: null }
  await team.open({ ...OPENING, deadlineMs: clockMs() + 5000 }, () => alone)
  team.abort(FAILURE, 100)
  expect(order).toEqual(['bit', 'bit', 'message', 'message'])
  await team.left()
  await pool.close()
})

function noteAborts(link: RankLink, order: string[]): void {
  const { raiseAbort, abort } = link
  link.raiseAbort = () => {
    order.push('bit')
    raiseAbort.call(link)
  }
  link.abort = (...told) => {
    order.push('message')
    abort.apply(link, told)
  }
}

test('a ring in quarantine that cannot be freed ends its Worker, and a new one takes its place', async () => {
  const program = join(import.meta.dir, 'testing/lost-ring-program.ts')
  const child = Bun.spawn([process.execPath, program], { stderr: 'inherit' })
  expect(JSON.parse(await new Response(child.stdout).text())).toEqual({
    quarantinedBefore: RING_BYTES,
    freedBehindIt: 1,
    dead: [{ code: 'internal', rank: 0, message: expect.stringContaining('memory handle') }],
    threadEnded: true,
    fresh: true,
    quarantinedAfter: RING_BYTES,
  })
})

test('the communicators of Workers that die end with them', async () => {
  const program = join(import.meta.dir, 'testing/lost-communicator-program.ts')
  const child = Bun.spawn([process.execPath, program], { stderr: 'inherit' })
  const result = JSON.parse(await new Response(child.stdout).text())
  expect(result).toEqual({ before: 2, freed: 2, died: 2, after: 0 })
})

test('the checkpoint stays until the copies of a run whose Worker has died are over', async () => {
  const stream = 5
  let idle = false
  const library = {
    streamSync(asked: number) {
      if (asked === stream && !idle) throw new CkptError('update_timeout', 'it is not idle yet')
    },
  } as unknown as Library
  const { link, report, exit } = await startedLink(library)
  const opened = link.request({ type: 'open', options: { run: 3 } as OpenOptions })
  report({ type: 'answer', id: 0, value: { bytesBefore: 0, bytesAfter: 0, streams: [stream] } })
  await opened
  link.listen(3, 2 ** 20, () => {})
  exit()
  let settled = false
  const told = link.settled(3).then(() => (settled = true))
  await Bun.sleep(50)
  expect(settled).toBe(false)
  idle = true
  await told
})

/** A run that is open, whose engine's worker holds still. */
function begin(link: RankLink, report: ThreadEvents['report'], run: number, stream: number): void {
  link.listen(run, 0, () => {})
  report({ type: 'event', run, event: { type: 'begun', streams: [stream] } })
}

const isQuiet = (link: RankLink) =>
  Promise.race([link.quiet().then(() => true), Bun.sleep(50).then(() => false)])

const BUSY = {
  streamSync() {
    throw new CkptError('update_timeout', 'it is not idle yet')
  },
} as unknown as Library

test('later updates do not wait for a Worker that hangs when its copies are complete', async () => {
  const { link, report } = await startedLink(BUSY)
  begin(link, report, 3, 5)
  report({ type: 'event', run: 3, event: { type: 'transferred', readBy: [], takenBytes: 0 } })
  link.giveUp(1)
  expect(await isQuiet(link)).toBe(true)
})

test('later updates wait for a Worker that hangs while it copies until another one has ended its streams', async () => {
  const hanging = await startedLink(BUSY)
  begin(hanging.link, hanging.report, 3, 5)
  hanging.link.giveUp(1)
  expect(await isQuiet(hanging.link)).toBe(false)
  const lost = await startedLink(BUSY)
  hanging.link.endCopies(lost.link)
  lost.link.giveUp(1)
  expect(await isQuiet(hanging.link)).toBe(false)
  const fresh = await startedLink(BUSY)
  hanging.link.endCopies(fresh.link)
  const request = { type: 'end_streams', streams: [5] } as const
  expect(fresh.posted).toEqual([{ type: 'request', id: 0, request }])
  fresh.report({ type: 'answer', id: 0, value: { ended: false } })
  await until(() => fresh.posted.length === 2)
  expect(await isQuiet(hanging.link)).toBe(false)
  fresh.report({ type: 'answer', id: 1, value: { ended: true } })
  expect(await isQuiet(hanging.link)).toBe(true)
})

test('pinned memory that a Worker leaves is freed by the one in its place when its thread has ended', async () => {
  const dead = await startedLink(BUSY)
  dead.report({ type: 'pinned', buffers: [4] })
  dead.report({ type: 'pinned', buffers: [4, 6] })
  dead.link.giveUp(1)
  const lost = await startedLink(BUSY)
  const handedOn = dead.link.freePinned(lost.link)
  await Bun.sleep(20)
  expect(lost.posted).toEqual([])
  dead.exit()
  await until(() => lost.posted.length === 1)
  lost.exit()
  await handedOn
  const fresh = await startedLink(BUSY)
  const freed = lost.link.freePinned(fresh.link)
  await until(() => fresh.posted.length === 1)
  const request = { type: 'free_buffers', buffers: [4, 6] } as const
  expect(fresh.posted).toEqual([{ type: 'request', id: 0, request }])
  fresh.report({ type: 'answer', id: 0, value: null })
  await freed
})

async function startedLink(library: Library) {
  const started = Promise.withResolvers<ThreadEvents>()
  const posted: RankMessage[] = []
  const starts: StartThread = (_, events) => {
    started.resolve(events)
    return { post: (message) => void posted.push(message), hangUp() {}, terminate() {} }
  }
  const rank = { rank: 0 } as RankInfo
  const starting = RankLink.start({ kind: 'host' }, library, rank, false, undefined, starts)
  const { report, exited } = await started.promise
  report({ type: 'ready', signal: 0, memory: { freeBytes: 0, totalBytes: 0 } })
  return { link: await starting, report, exit: exited, posted }
}
