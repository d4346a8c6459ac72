import { linkSync, mkdtempSync, rmSync } from 'node:fs'
import { basename, join } from 'node:path'
import { selectDevices } from '@ckpt/cuda'
import { CkptError, type UpdateReport } from '@ckpt/core'
import { type Bench, type BenchContext, MIB } from './bench.ts'
import { atLeast, atMost, type Claim } from './claims.ts'
import { compareWeights, weightsOf } from './engine.ts'
import { PinnedCopies } from './pinned-copies.ts'
import { median, secondsOf } from './measure.ts'
import { measureUse, type MeasuredUse, residentBytes } from './memory-use.ts'
import { installPeer, PEER, startPeer, startPeerEngine } from './peer-python.ts'
import type { PeerServer } from './peer-server.ts'
import { SHM } from './places.ts'
import { type Row, rowOf } from './row.ts'
import { type DaemonProcess, startDaemon, targetOf, TIMEOUT_SECONDS } from './service.ts'
import { type Version, type Versions, writePair } from './versions.ts'
import { deviceMibMost, type Workload, workloads } from './workloads.ts'

const NAME = 'bench'
/** Until the memory of two versions is pinned and both have warmed up. */
const WARM_ROUNDS = 2
const ROUNDS = 3
/** Most GiB of the peer's buckets that are tried; the last is its default. */
const BUCKETS_GIB = [1, 2, 8] as const
/** Percent of the slower of the H2D limit and the worker's own time. */
const TRANSFER_LEAST = 97

/** A daemon that takes files to an engine. */
interface Contestant {
  readonly name: string
  /** Registers the version and updates the engine. */
  load(version: Version): Promise<UpdateReport | null>
  /** Updates the engine from what is registered. */
  update(): Promise<UpdateReport | null>
  /** Makes ready for the next `load`, untimed. */
  clear(): Promise<void>
  readonly pid: number
}

interface Round {
  readonly load: MeasuredUse<UpdateReport | null>
  readonly update: MeasuredUse<UpdateReport | null>
  readonly hostBytes: number
}

/** This daemon and the peer in turn: the same files, the same engine process, the same GPU. */
export const peers: Bench = {
  name: 'peers',
  onRequest: true,
  async *rows(context) {
    const { library, ranks } = selectDevices(context.devices, null)
    if (library.kind !== 'cuda' || ranks.length === 0) {
      throw new CkptError('bad_request', 'peers needs a GPU: --devices cuda:0')
    }
    const python = await installPeer(context.python, context.wheels, context.dir)
    for (const workload of workloads(context.sizes, context.models)) {
      yield* contest(context, python, workload)
    }
  },
}

async function* contest(
  context: BenchContext,
  python: string,
  workload: Workload,
): AsyncGenerator<Row> {
  const { devices, dir, open } = context
  await using stack = new AsyncDisposableStack()
  const { library: options, ranks } = selectDevices(devices, null)
  const library = open(options)
  const copies = new PinnedCopies(stack, devices, open)
  const versions = await writePair(stack, workload, 1, SHM)
  const engine = await startPeerEngine(stack, python, dir)
  const bucketGib = await bestBucket(python, engine, versions, dir)
  const daemon = await startDaemon(stack, devices, 1, dir)
  const peer = await startPeer(stack, python, bucketGib, dir)
  const contestants = [
    ourselves(daemon, engine),
    theirs(peer, engine, `${PEER.name} ${PEER.version}, ${bucketGib} GiB buckets`),
  ] as const
  const rounds = contestants.map((): Round[] => [])
  const wrong: number[] = []
  for (let round = 0; round <= WARM_ROUNDS + ROUNDS; round++) {
    for (const [index, contestant] of contestants.entries()) {
      versions.next()
      const present = versions.present
      copies.time()
      // looking at the device takes the driver's locks: the last round is looked at and not timed
      const last = round === WARM_ROUNDS + ROUNDS
      const device = last ? (ranks[0]?.device ?? 0) : null
      const load = await measureUse(library, device, () => contestant.load(present))
      const update = await measureUse(library, device, () => contestant.update())
      const hostBytes = residentBytes(contestant.pid)
      await contestant.clear()
      if (round >= WARM_ROUNDS) rounds[index]?.push({ load, update, hostBytes })
      if (last) {
        wrong[index] = compareWeights(await weightsOf(engine), present.expected, 1).wrong
      }
    }
  }
  for (const [index, { name }] of contestants.entries()) {
    yield* rowsOf(
      workload,
      versions,
      name,
      copies.gbPerSecond,
      rounds[index] ?? [],
      wrong[index] ?? Number.NaN,
    )
  }
}

function* rowsOf(
  workload: Workload,
  versions: Versions,
  name: string,
  limitGbPerSecond: number,
  rounds: readonly Round[],
  wrong: number,
): Generator<Row> {
  const checked = { compared: versions.tensors, wrong }
  for (const part of ['load', 'update'] as const) {
    const words = part === 'load' ? 'files to engine' : 'update'
    const head = {
      ...versions.head('peers', `${workload.name}, ${words}, ${name}`),
      limitGbPerSecond,
    }
    const uses = rounds.map((round) => round[part])
    const row = rowOf(
      head,
      uses.slice(0, ROUNDS).map(({ seconds }) => seconds),
      checked,
    )
    const deviceBytes = Math.max(...uses.map((use) => use.deviceBytes))
    const hostBytes = Math.max(...rounds.map((round) => round.hostBytes))
    const timed = uses.slice(0, ROUNDS)
    const claims = part === 'update' ? claimsOf(workload, timed, limitGbPerSecond, deviceBytes) : []
    yield { ...row, device_bytes: deviceBytes, host_bytes: hostBytes, claims }
  }
}

/** Of this daemon, whose reports say how long the worker was busy. */
function claimsOf(
  workload: Workload,
  uses: readonly MeasuredUse<UpdateReport | null>[],
  limitGbPerSecond: number,
  deviceBytes: number,
): Claim[] {
  const shares = uses.flatMap(({ value }) => {
    if (value === null) return []
    const slower = Math.max(value.bytes / limitGbPerSecond / 1e9, value.stages.reload.busy_s)
    return [(slower / value.seconds.transfer) * 100]
  })
  if (shares.length === 0) return []
  const most = deviceMibMost(workload)
  const what = (words: string) => `${PEER.name}'s worker, ${workload.name}: ${words}`
  return [
    atLeast(what('transfer, of the slower of H2D and worker'), median(shares), TRANSFER_LEAST, '%'),
    atMost(what('device memory taken'), deviceBytes / MIB, most, 'MiB'),
  ]
}

function ourselves({ client, pid }: DaemonProcess, engine: string): Contestant {
  const update = () =>
    client.update(NAME, { engines: [targetOf(engine, 1)], timeout: TIMEOUT_SECONDS })
  return {
    name: 'ckpt',
    pid,
    load: async ({ files }) => {
      await client.register(NAME, { files: [...files], replace: true, wait: false })
      return update()
    },
    update,
    clear: async () => {},
  }
}

/** It removes files in /dev/shm that it has pinned, so it gets links of its own. */
function theirs(peer: PeerServer, engine: string, name: string): Contestant {
  let links: string | null = null
  const update = async () => {
    const update_url = `${engine}/collective_rpc`
    await peer.update(NAME, { update_url, timeout: TIMEOUT_SECONDS })
    return null
  }
  return {
    name,
    pid: peer.pid,
    load: async ({ files }) => {
      const dir = mkdtempSync(join(SHM, 'ckpt-bench-links-'))
      links = dir
      const linked = files.map((file) => join(dir, basename(file)))
      for (const [index, file] of files.entries()) linkSync(file, linked[index] as string)
      await peer.register(NAME, { files: linked })
      await peer.gather(NAME)
      return update()
    },
    update,
    clear: async () => {
      await peer.drop(NAME)
      if (links !== null) rmSync(links, { recursive: true, force: true })
    },
  }
}

/** The size with which its second update is fastest. */
async function bestBucket(
  python: string,
  engine: string,
  versions: Versions,
  dir: string,
): Promise<number> {
  let best = { bucketGib: BUCKETS_GIB[0] as number, seconds: Number.POSITIVE_INFINITY }
  for (const bucketGib of BUCKETS_GIB) {
    await using stack = new AsyncDisposableStack()
    const contestant = theirs(await startPeer(stack, python, bucketGib, dir), engine, '')
    await contestant.load(versions.present)
    const seconds = await secondsOf(contestant.update)
    await contestant.clear()
    if (seconds < best.seconds) best = { bucketGib, seconds }
  }
  return best.bucketGib
}
