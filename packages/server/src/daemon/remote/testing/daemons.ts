/** Several daemons in one process, whose messages take the way through JSON that those between processes take. */
import { CkptError, type Failure, type RegisterRequest } from '@ckpt/core'
import { type Library, openLibrary, selectDevices } from '@ckpt/cuda'
import {
  type ReferenceEngineOptions,
  type RunningEngine,
  runReferenceEngine,
} from '../../../engines/reference/index.ts'
import { createRegistry } from '../../registry/held.ts'
import type { Registry } from '../../registry/registry.ts'
import {
  daemonOptions,
  safetensors,
  TestDir,
  type TestTensors,
} from '../../registry/testing/fixture.ts'
import type { DaemonOptions } from '../../types.ts'
import { createUpdates, type Updates } from '../../updates/updates.ts'
import type { LeaderPost, NodeChannel, NodePost, NodeRequest } from '../messages.ts'
import { type Packed, pack, unpack } from '../pack.ts'

export const NAME = 'model'

export interface TestDaemon {
  readonly registry: Registry
  readonly updates: Updates
  readonly dir: TestDir
  register(tensors: TestTensors, request?: Partial<RegisterRequest>): Promise<void>
}

export interface Daemons {
  readonly library: Library
  /** By node rank; the first one leads. */
  readonly daemons: readonly TestDaemon[]
  /** The way between the leader and this one is cut: what is on it is lost, and both are told. */
  cut(node: number): void
  /** It comes again. */
  join(node: number): void
  engine(options?: Partial<ReferenceEngineOptions>): Promise<RunningEngine>
}

/** What was sent, as it arrives. */
function carried({ body, parts }: Packed): Packed {
  return { body: JSON.parse(JSON.stringify(body)), parts: parts.map((part) => part.slice()) }
}

class Way {
  readonly #updates: () => readonly Updates[]
  readonly #node: number
  cut = false
  readonly #waiting = new Set<(error: CkptError) => void>()

  constructor(updates: () => readonly Updates[], node: number) {
    this.#updates = updates
    this.#node = node
  }

  get channel(): NodeChannel {
    return {
      request: (message) => {
        const { promise, resolve, reject } = Promise.withResolvers<Packed>()
        this.#waiting.add(reject)
        void this.#answer(carried(message)).then(resolve, reject)
        return promise.finally(() => this.#waiting.delete(reject))
      },
      post: (message) => {
        const told = carried(message)
        queueMicrotask(() => {
          if (!this.cut) this.#follower.take(unpack(told) as NodePost)
        })
      },
    }
  }

  get #follower() {
    const { node } = this.#updates()[this.#node] as Updates
    if (node === null) throw new Error('it does not follow')
    return node
  }

  async #answer(message: Packed): Promise<Packed> {
    await Bun.sleep(0)
    const answer = pack(await this.#follower.answer(unpack(message) as NodeRequest))
    await Bun.sleep(0)
    return carried(answer)
  }

  tellLeader(post: LeaderPost): void {
    const told = carried(pack(post))
    queueMicrotask(() => {
      if (!this.cut) this.#updates()[0]?.leader?.take(this.#node, unpack(told) as LeaderPost)
    })
  }

  lose(failure: Failure): void {
    this.cut = true
    for (const reject of this.#waiting) reject(CkptError.from(failure))
  }
}

/**
 * Each with so many ranks, all on the host library. Nothing native may be left but the signals of Workers that have died, which
 * other ranks may raise.
 */
export async function withDaemons(
  rankCounts: readonly number[],
  run: (daemons: Daemons) => Promise<void>,
  told: Partial<DaemonOptions> = {},
  deadWorkers = 0,
): Promise<void> {
  const selections = rankCounts.map((ranks) => selectDevices('host:2', ranks))
  const library = openLibrary({ kind: 'host', hostDevices: 2 })
  const before = library.liveObjects()
  const all: TestDaemon[] = []
  const updates = () => all.map((one) => one.updates)
  const ways = rankCounts.map((_, node) => new Way(updates, node))
  for (const [node, selection] of selections.entries()) {
    const dir = new TestDir()
    const options = daemonOptions(dir.path, { ...selection, ...told })
    const registry = await createRegistry(options)
    const place =
      node === 0
        ? ({ role: 'leader', nodes: rankCounts.length, listens: () => null } as const)
        : ({
            role: 'follower',
            post: (post: LeaderPost) => ways[node]?.tellLeader(post),
          } as const)
    const own = await createUpdates(options, registry, place)
    const register: TestDaemon['register'] = async (tensors, request = {}) => {
      const file = dir.write('model.safetensors', safetensors(tensors))
      await registry.register(NAME, { files: [file], replace: true, ...request }, null)
    }
    all.push({ dir, registry, updates: own, register })
  }
  const join = (node: number) => {
    const way = new Way(updates, node)
    ways[node] = way
    const description = all[node]?.updates.node?.description
    if (description === undefined) throw new Error('it does not follow')
    const { body, parts } = carried(pack(description))
    all[0]?.updates.leader?.joined(node, unpack({ body, parts }) as never, way.channel)
  }
  const cut = (node: number) => {
    const failure: Failure = { code: 'node_lost', message: `node ${node} is lost` }
    ways[node]?.lose(failure)
    all[0]?.updates.leader?.lost(node, failure)
    const lost: Failure = { code: 'leader_lost', message: 'the leader is lost' }
    void all[node]?.updates.node?.lose(lost)
  }
  for (const node of rankCounts.keys()) if (node > 0) join(node)
  const engines: RunningEngine[] = []
  const engine = async (options: Partial<ReferenceEngineOptions> = {}) => {
    const given = { listen: '127.0.0.1:0', devices: 'host:2', dialect: 'D4', faults: [] } as const
    const one = await runReferenceEngine({ ...given, tensorParallelSize: 1, ...options })
    engines.push(one)
    return one
  }
  try {
    await run({ library, daemons: all, cut, join, engine })
  } finally {
    await Promise.all(engines.map((one) => one.close()))
    for (const one of all) await one.updates.close('the test is over')
    for (const one of all) await one.registry.close()
    for (const one of all) one.dir.remove()
  }
  const left = library.liveObjects() - before - deadWorkers
  if (left !== 0) throw new Error(`${left} native objects are left`)
}
