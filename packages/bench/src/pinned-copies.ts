import { type Handle, type Library, type LibraryOptions, selectDevices } from '@ckpt/cuda'
import { MIB } from './bench.ts'
import { allocate, WAIT_MS } from './device-bytes.ts'

const SOURCE_BYTES = 4096 * MIB
const COPY_BYTES = 256 * MIB

/**
 * What an update cannot beat: copies of 256 MiB out of 4 GiB of pinned host memory, more than the processor's caches hold,
 * queued on one stream. They are timed between the runs, so that what slows the machine down slows both.
 */
export class PinnedCopies {
  readonly #library: Library
  readonly #source: Handle
  readonly #memory: Handle
  readonly #stream: Handle
  readonly #rates: number[] = []

  /** `stack` frees what they use. */
  constructor(
    stack: AsyncDisposableStack,
    devices: string,
    open: (options: LibraryOptions) => Library,
  ) {
    const { library: options, ranks } = selectDevices(devices, null)
    const library = open(options)
    this.#library = library
    this.#source = library.bufferAlloc(SOURCE_BYTES, 0)
    stack.defer(() => library.bufferFree(this.#source))
    const own = stack.use(new DisposableStack())
    const { memory, stream } = allocate(library, own, ranks[0]?.device ?? 0, COPY_BYTES)
    this.#memory = memory
    this.#stream = stream
  }

  time(): void {
    const library = this.#library
    const beginMs = performance.now()
    for (let at = 0; at < SOURCE_BYTES; at += COPY_BYTES) {
      library.copyH2d(this.#stream, this.#memory, 0, this.#source, at, COPY_BYTES)
    }
    library.streamSync(this.#stream, 0, WAIT_MS)
    this.#rates.push(SOURCE_BYTES / (performance.now() - beginMs) / 1e6)
  }

  /** The median, in GB/s. */
  get gbPerSecond(): number {
    const sorted = this.#rates.toSorted((a, b) => a - b)
    return sorted[sorted.length >> 1] ?? Number.NaN
  }
}
