import { readEngineMessage, unpackFrame } from '@ckpt/core'
import type { DaemonOptions } from '../types.ts'
import { type ExpectedTensor, SimulatedRegistry } from './checkpoint.ts'
import { Disk } from './disk.ts'
import { ranksOf, SimulatedDaemon } from './daemon.ts'
import { engineHost, SimulatedEngine } from './engine.ts'
import type { WorkerPlace } from './engine-worker.ts'
import { SimulatedLibrary } from './library.ts'
import { Network, type NetworkEnd } from './network.ts'
import type { Random } from './random.ts'
import type { Scenario } from './scenario.ts'
import { SharedDevices } from './shared-devices.ts'
import { Life, type SimulatedTime } from './time.ts'
import type { Witness } from './violation.ts'
import { Wires } from './wires.ts'

/** The daemons and engines of one scenario. */
export class World {
  readonly daemons: SimulatedDaemon[]
  readonly engines: readonly SimulatedEngine[]
  readonly time: SimulatedTime
  readonly #random: Random
  readonly #witness: Witness
  readonly #scenario: Scenario
  readonly #shared: SharedDevices
  readonly #wires: Wires
  readonly #network: Network
  /** Of what was registered, the newest last. */
  readonly versions: ReadonlyMap<string, ExpectedTensor>[] = []
  readonly #disks: readonly Disk[]
  #incarnations = 0

  constructor(time: SimulatedTime, random: Random, witness: Witness, scenario: Scenario) {
    this.time = time
    this.#random = random
    this.#witness = witness
    this.#scenario = scenario
    this.#shared = new SharedDevices(time, random, scenario.speed, witness)
    this.#wires = new Wires(time, random, scenario.delaysMs.wires)
    this.#network = new Network(time, random, scenario.delaysMs.network)
    this.#wires.sent = (address, body) => this.#sent(address, body)
    this.engines = this.#makeEngines()
    this.#disks = scenario.devices.map(() => new Disk())
    this.daemons = scenario.devices.map((_, node) => this.#makeDaemon(node))
  }

  #sent(address: string, body: Uint8Array): void {
    const direct = unpackFrame(body)?.head as { readonly type: string } | undefined
    const { type } = direct ?? readEngineMessage(body)
    this.#witness.trace(() => `${type} to ${address}`)
    for (const engine of this.engines) {
      if (!engine.addresses.has(address)) continue
      if (type === 'list') engine.listsSent++
      if (type === 'begin') engine.beginsSent++
    }
  }

  #makeEngines(): SimulatedEngine[] {
    const place: WorkerPlace = {
      time: this.time,
      random: this.#random,
      wires: this.#wires,
      witness: this.#witness,
      devices: this.#shared,
      ringOf: (handle) => this.#ringOf(handle),
      expected: () => this.expected,
    }
    const infos = this.#scenario.devices.flatMap((devices, node) => ranksOf(node, devices))
    return this.#scenario.engines.map(({ ranks, scripts, ...kind }, number) => {
      const keys = ranks.map((rank) => [infos[rank]?.key ?? '', infos[rank]?.uuid ?? ''])
      const engine = new SimulatedEngine(number, keys, kind, place, this.#random)
      engine.scripts = scripts
      return engine
    })
  }

  #ringOf(handle: Uint8Array) {
    for (const { parts } of this.daemons) {
      const ring = parts.library.ringOf(handle)
      if (ring !== null) return ring
    }
    return null
  }

  #makeDaemon(node: number): SimulatedDaemon {
    const { devices, tensors, tensorBytesMost, delaysMs } = this.#scenario
    const own = devices[node] ?? []
    const life = new Life()
    const library = new SimulatedLibrary(this.#shared, life, own)
    const sizes = { tensors: tensors[node] ?? 0, bytesMost: tensorBytesMost }
    const registry = new SimulatedRegistry(
      this.#random,
      library,
      this.#witness,
      node,
      own.length,
      sizes,
    )
    return new SimulatedDaemon({
      time: this.time,
      random: this.#random,
      witness: this.#witness,
      wires: this.#wires,
      network: this.#network,
      life,
      node,
      nodes: devices.length,
      incarnation: ++this.#incarnations,
      options: this.#options(node),
      library,
      registry,
      engines: engineHost(() => this.engines),
      disk: this.#disks[node] as Disk,
      delayMs: delaysMs.threads,
    })
  }

  #options(node: number): DaemonOptions {
    const { devices, ringBytes, bucketBytes, broadcast } = this.#scenario
    return {
      library: { kind: 'host' },
      ranks: ranksOf(node, devices[node] ?? []),
      allowedDirs: null,
      allowedEngines: null,
      hostMemoryBytes: null,
      evict: false,
      inPlace: 'never',
      stateDir: '/nonexistent/ckpt-simulation',
      ringBytes,
      bucketBytes,
      memoryFraction: 0.9,
      spin: 'off',
      broadcast,
      idleCommunicatorMs: 30_000,
    }
  }

  start(): void {
    for (const daemon of this.daemons) daemon.start()
  }

  get leader(): SimulatedDaemon {
    return this.daemons[0] as SimulatedDaemon
  }

  /** Every daemon is there and every rank of it can be used. */
  get complete(): boolean {
    if (this.daemons.some((daemon) => !daemon.life.alive || !daemon.ready)) return false
    const { leader } = this.leader
    if (leader === null) return true
    return leader.ranks.nodes.length === this.daemons.length - 1 && this.#sessionsHold
  }

  /** Both sides of every session know of it, and no leader has taken a part from a daemon of before. */
  get #sessionsHold(): boolean {
    return this.daemons.every(
      ({ node, end }) => node === null || (end?.membership.peers.length === 1 && !node.busy),
    )
  }

  /** Another process in its place. */
  restart(node: number): void {
    const fresh = this.#makeDaemon(node)
    this.daemons[node] = fresh
    fresh.start()
  }

  end(node: number): NetworkEnd<null> | null {
    return (this.daemons[node]?.end ?? null) as NetworkEnd<null> | null
  }

  kill(node: number): void {
    const end = this.end(node)
    this.daemons[node]?.kill()
    if (node !== 0 && end !== null) this.#network.hangUp(end.connection)
    for (let other = 1; node === 0 && other < this.daemons.length; other++) this.cut(other)
  }

  cut(node: number): void {
    const end = this.end(node)
    if (end !== null) this.#network.cut(end)
  }

  darken(node: number): void {
    const end = this.end(node)
    if (end !== null) this.#network.darken(end)
  }

  /** New weights everywhere: what the next update must bring. */
  register(): void {
    for (const { parts } of this.daemons) parts.registry.register()
    this.versions.push(new Map(this.daemons.flatMap(({ parts }) => parts.registry.expected)))
  }

  get expected(): ReadonlyMap<string, ExpectedTensor> {
    return this.versions.at(-1) ?? new Map()
  }
}
