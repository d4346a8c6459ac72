/** Ranks that read another daemon's memory by UCX, in turn with broadcasts, and a host that joins. */
import { join } from 'node:path'
import { CKPT } from '../../test/support/process.ts'
import { firstLayout } from './broadcasts.ts'
import { devicesOf, environmentOf } from './layout.ts'
import { compareAll, Pair } from './pair.ts'
import { Engine } from './processes.ts'
import { faultOf } from './results.ts'
import { type Run, type Step, updateSeconds } from './steps.ts'

/** What UCX may use, and what reads must have gone by then: see `P2pTransport`. `emulated` are messages over TCP. */
const WAYS = [
  { name: 'shared memory', env: { UCX_TLS: 'self,sm' }, transports: ['shm', 'cma'] },
  {
    name: 'TCP',
    env: { UCX_TLS: 'self,tcp', UCX_NET_DEVICES: 'lo' },
    transports: ['emulated'],
  },
] as const
/** All of them. */
export const TRANSPORTS: readonly string[] = ['rdma', ...WAYS.flatMap((way) => way.transports)]
const READS = 3
const TURNS = 2

export function readSteps(run: Run): Step[] {
  const layout = firstLayout(run)
  return WAYS.map(({ name, env, transports }, at) => ({
    part: 'b',
    name: `${layout.name} reads over ${name}`,
    async work(place) {
      const { options, versions } = run
      const pair = await Pair.start(place, options.devices, layout, { env })
      await pair.registerWhole(versions)
      place.say('reads begin')
      const read = (what: string) => readOnce(run, pair, `${name}, ${what}`, transports)
      for (let one = 1; one <= READS; one++) await read(`read ${one}`)
      if (at > 0) return
      await pair.registerParts(versions)
      place.say('broadcasts and reads in turn begin')
      for (let turn = 1; turn <= TURNS; turn++) {
        await broadcastOnce(run, pair, `${name}, broadcast in turn ${turn}`)
        await read(`read in turn ${turn}`)
      }
      place.say('a host joins')
      await joinOnce(run, pair, env)
    },
  }))
}

/** The follower's ranks, of what only the leader holds. */
async function readOnce(
  run: Run,
  pair: Pair,
  what: string,
  transports: readonly string[],
): Promise<void> {
  const { versions, results } = run
  const version = versions.next()
  const engines = [pair.engines[1]]
  const ranks = [...pair.engines[1].ranks]
  const request = { ranks, timeout: updateSeconds(run) }
  const seen = await pair.update(`whole-${version.name}`, engines, request)
  const compared = await compareAll(versions, version, engines)
  results.update('b', what, seen, compared, transports)
}

async function broadcastOnce(run: Run, pair: Pair, what: string): Promise<void> {
  const { versions, results } = run
  const version = versions.next()
  const request = { timeout: updateSeconds(run) }
  const seen = await pair.update(`parts-${version.name}`, pair.engines, request)
  results.update('b', what, seen, await compareAll(versions, version, pair.engines))
}

/** A daemon without anything, on the leader's GPU, for an engine of its own. */
async function joinOnce(run: Run, pair: Pair, env: Record<string, string>): Promise<void> {
  const { versions, results } = run
  const version = versions.next()
  const { layout, kind, dir, processes } = pair
  const devices = devicesOf({ ...layout, ranks: [1, 1] }, kind, 0)
  const engine = new Engine('engine of the host that joins', join(dir, 'joins.sock'), devices, [0])
  await processes.start(engine.child)
  const among = ['--leader', pair.leaderAddress, '--cluster-token-file', pair.tokenFile]
  const where = ['--endpoint', 'http://joins', '--uds', engine.socket, '--engine', 'vllm']
  const what = ['--inference-parallel-size', '1', '--devices', devices, '--json']
  const command = [...CKPT, 'join', `parts-${version.name}`, ...among, ...where, ...what]
  const beganMs = performance.now()
  const told = await processes.run(command, { ...environmentOf(layout, 2), ...env })
  const seconds = (performance.now() - beganMs) / 1000
  const compared = await compareAll(versions, version, [engine])
  const { updates } = JSON.parse(told) as { updates?: { gb_per_s: number; bytes: number }[] }
  results.add({
    part: 'b',
    what: 'ckpt join',
    seconds,
    bytes: updates?.[0]?.bytes ?? versions.bytes,
    transferGbPerSecond: updates?.[0]?.gb_per_s ?? null,
    note: 'of the whole command, whose daemon starts and ends in it',
    error: faultOf(compared),
    ...compared,
  })
}
