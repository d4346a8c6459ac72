import type { UpdateReport, UpdateRequest } from '@ckpt/core'
import type { DaemonClient } from 'ckpt/cli/client'
import { compareWeights, type Expected, weightsOf } from './engine.ts'
import { type Checked, type Timed } from './measure.ts'
import { type DaemonProcess, startDaemon, targetOf, TIMEOUT_SECONDS } from './service.ts'
import type { Versions } from './versions.ts'

/** One that runs, at a base URL, and which ranks of the daemon it has. */
export interface EngineAtRanks {
  readonly url: string
  readonly ranks: readonly number[]
}

type Mode = NonNullable<UpdateRequest['mode']>

/** @param more of the request */
export function updateEngines(
  client: DaemonClient,
  name: string,
  engines: readonly EngineAtRanks[],
  mode: Mode,
  more: Pick<UpdateRequest, 'ranks'> = {},
): Promise<UpdateReport> {
  const targets = engines.map(({ url, ranks }) => ({ ...targetOf(url, 0), ranks: [...ranks] }))
  return client.update(name, { engines: targets, mode, timeout: TIMEOUT_SECONDS, ...more })
}

/** Compares all of them with a version. */
export async function checkEngines(
  engines: readonly EngineAtRanks[],
  expected: Expected,
): Promise<Checked> {
  const each = await Promise.all(
    engines.map(async ({ url, ranks }) => {
      return compareWeights(await weightsOf(url), expected, ranks.length)
    }),
  )
  return each.reduce((all, one) => ({
    compared: all.compared + one.compared,
    wrong: all.wrong + one.wrong,
  }))
}

/** Updates of engines from a daemon that holds both versions, which take turns. */
export class Updates {
  readonly versions: Versions
  readonly daemon: DaemonProcess
  readonly reports: UpdateReport[] = []
  readonly #engines: readonly EngineAtRanks[]

  private constructor(
    versions: Versions,
    daemon: DaemonProcess,
    engines: readonly EngineAtRanks[],
  ) {
    this.versions = versions
    this.daemon = daemon
    this.#engines = engines
  }

  /** The daemon, started with these flags too, ends with `stack`. A single engine, told by where it listens, has all ranks. */
  static async start(
    stack: AsyncDisposableStack,
    devices: string,
    ranks: number,
    dir: string,
    versions: Versions,
    engine: string | readonly EngineAtRanks[],
    flags: readonly string[] = [],
  ): Promise<Updates> {
    const daemon = await startDaemon(stack, devices, ranks, dir, flags)
    for (const { name, files } of versions.both) {
      await daemon.client.register(name, { files: [...files] })
    }
    const engines = typeof engine === 'string' ? [{ url: engine, ranks: allOf(ranks) }] : engine
    return new Updates(versions, daemon, engines)
  }

  timed(mode: Mode): Timed {
    return {
      prepare: () => this.versions.next(),
      run: async () => {
        const { name } = this.versions.present
        this.reports.push(await updateEngines(this.daemon.client, name, this.#engines, mode))
      },
      check: () => this.check(),
    }
  }

  /** Compares the engines with the version that they were updated with last. */
  check(): Promise<Checked> {
    return checkEngines(this.#engines, this.versions.present.expected)
  }
}

function allOf(ranks: number): number[] {
  return Array.from({ length: ranks }, (_, rank) => rank)
}
