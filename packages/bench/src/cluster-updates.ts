import { mkdirSync } from 'node:fs'
import type { TraceAnswer, UpdateReport } from '@ckpt/core'
import { startDaemons } from './daemon-cluster.ts'
import type { Checked } from './measure.ts'
import { type DaemonProcess, startDaemon, startEngine } from './service.ts'
import { checkEngines, type EngineAtRanks, updateEngines } from './updates.ts'
import type { Versions } from './versions.ts'

/** Updates of several daemons, each with a rank and an engine of its own, that hold a part of the checkpoint each; or of one that has all. */
export class ClusterUpdates {
  readonly #daemons: readonly DaemonProcess[]
  readonly #engines: readonly EngineAtRanks[]

  private constructor(daemons: readonly DaemonProcess[], engines: readonly EngineAtRanks[]) {
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
    const starting = daemons.map(async (_, rank) => {
      return { url: await startEngine(stack, devices, 1, [], env), ranks: [rank] }
    })
    return new ClusterUpdates(daemons, await Promise.all(starting))
  }

  /** One daemon with all ranks, and an engine of as many. They end with `stack`. */
  static async startOne(
    stack: AsyncDisposableStack,
    devices: string,
    ranks: number,
    dir: string,
    flags: readonly string[],
  ): Promise<ClusterUpdates> {
    mkdirSync(dir, { recursive: true, mode: 0o700 })
    const daemon = await startDaemon(stack, devices, ranks, dir, flags)
    const url = await startEngine(stack, devices, ranks)
    const all = Array.from({ length: ranks }, (_, rank) => rank)
    return new ClusterUpdates([daemon], [{ url, ranks: all }])
  }

  /**
   * Of each version the first file at the first daemon, and so on, at a single one all; then the files are removed.
   *
   * @throws Error when there is not a file for each daemon
   */
  async register(versions: Versions): Promise<void> {
    for (const { name, files } of versions.both) {
      const [only] = this.#daemons
      if (this.#daemons.length === 1 && only !== undefined) {
        await only.client.register(name, { files: [...files] })
        continue
      }
      if (files.length !== this.#daemons.length) {
        throw new Error(`${files.length} files for ${this.#daemons.length} daemons`)
      }
      const registering = this.#daemons.map(({ client }, node) => {
        return client.register(name, { files: [files[node] as string] })
      })
      await Promise.all(registering)
    }
    versions.removeFiles()
  }

  /** With the version whose turn comes. */
  async update(versions: Versions): Promise<UpdateReport> {
    versions.next()
    return updateEngines(this.#leader, versions.present.name, this.#engines, 'pipelined')
  }

  trace({ update_id: id }: UpdateReport): Promise<TraceAnswer> {
    return this.#leader.trace(id)
  }

  /** Compares every engine with the version of the last update. */
  check({ present: { expected } }: Versions): Promise<Checked> {
    return checkEngines(this.#engines, expected)
  }

  get #leader() {
    return (this.#daemons[0] as DaemonProcess).client
  }
}
