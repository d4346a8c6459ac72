import { afterAll, afterEach, expect } from 'bun:test'
import { type Dialect, EngineWeights } from '@ckpt/core'
import type { Library } from '@ckpt/cuda'
import { type ReferenceEngineOptions, type RunningEngine, runReferenceEngine } from '../index.ts'
import { type DaemonSide, NONE, ScriptedDaemon } from './scripted-daemon.ts'

interface Answer {
  readonly status: number
  readonly text: string
}

/**
 * Engines and the daemon that plays with them, for one test file: the engines close after each test, the daemon after all,
 * and nothing may be left of either.
 */
export class PlayedUpdates {
  readonly daemon: ScriptedDaemon
  /** That were started and are not closed yet. */
  readonly engines: RunningEngine[] = []
  #updates = 0

  constructor(library: Library) {
    const objectsBefore = library.liveObjects()
    this.daemon = new ScriptedDaemon(library)
    afterEach(async () => {
      await Promise.all(this.engines.splice(0).map((engine) => engine.close()))
    })
    afterAll(() => {
      this.daemon.close()
      expect(library.liveObjects()).toBe(objectsBefore)
    })
  }

  startEngine = async (options: Partial<ReferenceEngineOptions> = {}): Promise<RunningEngine> => {
    const engine = await runReferenceEngine({
      listen: '127.0.0.1:0',
      tensorParallelSize: 2,
      devices: 'host',
      dialect: 'D4',
      faults: [],
      ...options,
    })
    this.engines.push(engine)
    return engine
  }

  post = async (engine: RunningEngine, path: string, body: unknown): Promise<Answer> => {
    const response = await fetch(`${engine.url}${path}`, {
      method: 'POST',
      body: JSON.stringify(body),
      headers: { 'content-type': 'application/json' },
    })
    return { status: response.status, text: await response.text() }
  }

  weightsOf = async (engine: RunningEngine): Promise<EngineWeights> => {
    const response = await fetch(`${engine.url}/v1/weights`)
    return EngineWeights.assert(await response.json())
  }

  /** Binds one socket per rank; `map` is what the engine is to be told. */
  bind = (engine: RunningEngine) => {
    const update = ++this.#updates
    const sides = engine.keys.map((_, rank) => this.daemon.side(`u${update}-${rank}`))
    const map = Object.fromEntries(engine.keys.map((key, rank) => [key, sides[rank]!.address]))
    return { sides, map }
  }

  /** Begins an update through the ring, as vLLM's client or as SGLang's. */
  begin = (engine: RunningEngine, timeoutSeconds = 20, sglangVersion?: string) => {
    const { sides, map } = this.bind(engine)
    const http =
      sglangVersion === undefined
        ? this.post(engine, '/collective_rpc', {
            method: 'update_weights_from_ipc',
            args: [map],
            timeout: timeoutSeconds,
          })
        : this.post(engine, '/update_weights_from_ipc', {
            zmq_handles: map,
            weight_version: sglangVersion,
            flush_cache: true,
          })
    return { sides, http }
  }

  open = async (sides: readonly DaemonSide[]): Promise<void> => {
    await all(sides, async (side) => {
      await side.send(this.daemon.handle)
      expect(await side.reply()).toHaveLength(0)
    })
  }

  /** Sends list `g` to all; every reply must be success. */
  list = async (sides: readonly DaemonSide[], g: number): Promise<void> => {
    await all(sides, async (side) => {
      await side.send(this.daemon.lists[g]!)
      expect(await side.reply()).toHaveLength(0)
    })
  }

  /** Sends the end of the dialect and waits for its last reply. */
  end = async (sides: readonly DaemonSide[], dialect: Dialect): Promise<void> => {
    await all(sides, async (side) => {
      await side.send(NONE)
      expect(await side.reply()).toHaveLength(0)
      if (dialect !== 'D4') return
      await side.send(NONE)
      expect(await side.reply()).toHaveLength(0)
    })
  }

  wholeUpdate = async (engine: RunningEngine, dialect: Dialect, sglangVersion?: string) => {
    const { sides, http } = this.begin(engine, 20, sglangVersion)
    await this.open(sides)
    for (let g = 0; g < this.daemon.lists.length; g++) {
      await this.list(sides, g)
      this.daemon.overwrite(g)
    }
    await this.end(sides, dialect)
    return await http
  }

  expectContent = async (engine: RunningEngine): Promise<EngineWeights> => {
    const weights = await this.weightsOf(engine)
    expect(weights.torn).toBe(false)
    for (const [rank, { tensors }] of weights.ranks.entries()) {
      const expected = this.daemon.expected(rank, engine.keys.length)
      expect(Object.keys(tensors).sort()).toEqual(Object.keys(expected).sort())
      for (const [name, { shape, sha256 }] of Object.entries(expected)) {
        const found: unknown = { ...tensors[name], dtype: undefined }
        expect([name, found]).toEqual([name, { dtype: undefined, shape, sha256 }])
      }
    }
    return weights
  }

  /** After a fault that applied once, the same engine takes a whole update. */
  expectHealed = async (engine: RunningEngine, dialect: Dialect): Promise<void> => {
    await this.daemon.fill(this.#updates + 1000)
    expect((await this.wholeUpdate(engine, dialect)).status).toBe(200)
    await this.expectContent(engine)
  }
}

export function all<T>(
  sides: readonly DaemonSide[],
  work: (side: DaemonSide, rank: number) => Promise<T>,
): Promise<T[]> {
  return Promise.all(sides.map(work))
}
