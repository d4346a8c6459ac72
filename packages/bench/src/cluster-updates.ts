import type { TraceAnswer, UpdateReport } from '@ckpt/core'
import { startDaemons } from './daemon-cluster.ts'
import { compareWeights, weightsOf } from './engine.ts'
import type { Checked } from './measure.ts'
import { type DaemonProcess, startEngine, targetOf, TIMEOUT_SECONDS } from './service.ts'
import type { Version, Versions } from './versions.ts'

/** Updates of several daemons, each with a rank and an engine of its own, that hold a part of the checkpoint each. */
export class ClusterUpdates {
  readonly #daemons: readonly DaemonProcess[]
  readonly #engines: readonly string[]
  readonly #numbers = new Map<Versions, number>()

  private constructor(daemons: readonly DaemonProcess[], engines: readonly string[]) {
    this.#daemons = daemons
    this.#engines = engines
  }

  /** They end with `stack`. */
  static async start(
    stack: AsyncDisposableStack,
    devices: string,
    count: number,
    dir: string,
    flags: readonly string[],
    env: Readonly<Record<string, string>>,
  ): Promise<ClusterUpdates> {
    const daemons = await startDaemons(stack, devices, count, dir, flags, env)
    const starting = daemons.map(() => startEngine(stack, devices, 1, [], env))
    return new ClusterUpdates(daemons, await Promise.all(starting))
  }

  /** Of each version the first file at the first daemon, and so on; then the files are removed. */
  async register(versions: Versions): Promise<void> {
    this.#numbers.set(versions, this.#numbers.size)
    for (const version of versions.both) {
      const name = this.#nameOf(versions, version)
      const registering = this.#daemons.map(({ client }, node) => {
        return client.register(name, { files: [version.files[node] as string] })
      })
      await Promise.all(registering)
    }
    versions.removeFiles()
  }

  /** With the version whose turn comes. */
  async update(versions: Versions): Promise<UpdateReport> {
    versions.next()
    const engines = this.#engines.map((url, rank) => ({ ...targetOf(url, 0), ranks: [rank] }))
    const request = { engines, mode: 'pipelined' as const, timeout: TIMEOUT_SECONDS }
    return this.#leader.update(this.#nameOf(versions, versions.present), request)
  }

  /** Those of several pairs are called the same. */
  #nameOf(versions: Versions, { name }: Version): string {
    return `${this.#numbers.get(versions)}-${name}`
  }

  trace({ update_id: id }: UpdateReport): Promise<TraceAnswer> {
    return this.#leader.trace(id)
  }

  /** Compares every engine with the version of the last update. */
  async check({ present: { expected } }: Versions): Promise<Checked> {
    const each = await Promise.all(
      this.#engines.map(async (url) => compareWeights(await weightsOf(url), expected, 1)),
    )
    return each.reduce((all, one) => {
      return { compared: all.compared + one.compared, wrong: all.wrong + one.wrong }
    })
  }

  get #leader() {
    return (this.#daemons[0] as DaemonProcess).client
  }
}
