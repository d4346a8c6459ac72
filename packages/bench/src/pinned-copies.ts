import { type Handle, type Library, type LibraryOptions, selectDevices } from '@ckpt/cuda'
import { MIB } from './bench.ts'
import type { Claim } from './claims.ts'
import { allocate, type DeviceBytes } from './device-bytes.ts'
import { median, type Timed } from './measure.ts'
import { measureRow, type Row, type RowHead } from './row.ts'
import { finish } from './streams.ts'

const SOURCE_BYTES = 4096 * MIB
const COPY_BYTES_MOST = 256 * MIB

/**
 * What an update cannot beat: copies of 256 MiB out of 4 GiB of pinned host memory, more than the processor's caches hold,
 * queued on one stream. They are timed between the runs, so that what slows the machine down slows both.
 */
export class PinnedCopies {
  readonly #library: Library
  readonly #source: Handle
  readonly #sourceBytes: number
  readonly #copyBytes: number
  readonly #target: DeviceBytes
  readonly #rates: number[] = []

  /**
   * `stack` frees what they use.
   *
   * @param sourceBytes a multiple of 256 MiB, or less: one copy, for runs that say nothing about a device
   */
  constructor(
    stack: AsyncDisposableStack,
    devices: string,
    open: (options: LibraryOptions) => Library,
    sourceBytes = SOURCE_BYTES,
  ) {
    const { library: options, ranks } = selectDevices(devices, null)
    const library = open(options)
    this.#library = library
    this.#sourceBytes = sourceBytes
    this.#copyBytes = Math.min(sourceBytes, COPY_BYTES_MOST)
    this.#source = library.bufferAlloc(sourceBytes, 0)
    stack.defer(() => library.bufferFree(this.#source))
    const own = stack.use(new DisposableStack())
    this.#target = allocate(library, own, ranks[0]?.device ?? 0, this.#copyBytes)
  }

  time(): void {
    const { stream, memory } = this.#target
    const beginMs = performance.now()
    for (let at = 0; at < this.#sourceBytes; at += this.#copyBytes) {
      this.#library.copyH2d(stream, memory, 0, this.#source, at, this.#copyBytes)
    }
    finish(this.#library, [this.#target])
    this.#rates.push(this.#sourceBytes / (performance.now() - beginMs) / 1e6)
  }

  /** The median, in GB/s. */
  get gbPerSecond(): number {
    return median(this.#rates)
  }

  /** Times the runs and, between them, the copies, which are the row's limit. Claims are made with the CUDA library only. */
  async measureRow(head: RowHead, timed: Timed, claimsOf: (row: Row) => Claim[]): Promise<Row> {
    const prepare = async () => {
      await timed.prepare?.()
      this.time()
    }
    const measured = await measureRow(head, { ...timed, prepare })
    const row = { ...measured, limit_gb_per_s: this.gbPerSecond }
    return this.#library.kind === 'cuda' ? { ...row, claims: claimsOf(row) } : row
  }
}
