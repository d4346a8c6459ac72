import type { UpdateReport, UpdateRequest } from '@ckpt/core'
import { compareWeights, weightsOf } from './engine.ts'
import { type Checked, type Timed } from './measure.ts'
import { type DaemonProcess, startDaemon, targetOf, TIMEOUT_SECONDS } from './service.ts'
import type { Versions } from './versions.ts'

/** Updates of an engine from a daemon that holds both versions, which take turns. */
export class Updates {
  readonly versions: Versions
  readonly daemon: DaemonProcess
  readonly reports: UpdateReport[] = []
  readonly #engine: string
  readonly #ranks: number

  private constructor(versions: Versions, daemon: DaemonProcess, engine: string, ranks: number) {
    this.versions = versions
    this.daemon = daemon
    this.#engine = engine
    this.#ranks = ranks
  }

  /** The daemon, started with these flags too, ends with `stack`. `engine` is where it listens. */
  static async start(
    stack: AsyncDisposableStack,
    devices: string,
    ranks: number,
    dir: string,
    versions: Versions,
    engine: string,
    flags: readonly string[] = [],
  ): Promise<Updates> {
    const daemon = await startDaemon(stack, devices, ranks, dir, flags)
    for (const { name, files } of versions.both) {
      await daemon.client.register(name, { files: [...files] })
    }
    return new Updates(versions, daemon, engine, ranks)
  }

  timed(mode: NonNullable<UpdateRequest['mode']>): Timed {
    return {
      prepare: () => this.versions.next(),
      run: async () => {
        const engines = [targetOf(this.#engine, this.#ranks)]
        const request = { engines, mode, timeout: TIMEOUT_SECONDS }
        this.reports.push(await this.daemon.client.update(this.versions.present.name, request))
      },
      check: () => this.check(),
    }
  }

  /** Compares the engine with the version that it was updated with last. */
  async check(): Promise<Checked> {
    return compareWeights(
      await weightsOf(this.#engine),
      this.versions.present.expected,
      this.#ranks,
    )
  }
}
