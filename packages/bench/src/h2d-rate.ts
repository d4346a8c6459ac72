import { type Library, type LibraryOptions, selectDevices } from '@ckpt/cuda'
import { MIB } from './bench.ts'
import { allocate, WAIT_MS } from './device-bytes.ts'

const COPY_BYTES = 256 * MIB
const COPIES = 8
const RUNS = 12

/** Bytes per nanosecond of copies of 256 MiB out of pinned host memory, queued on one stream: what an update cannot beat. */
export function pinnedRate(devices: string, open: (options: LibraryOptions) => Library): number {
  const { library: options, ranks } = selectDevices(devices, null)
  const library = open(options)
  const device = ranks[0]?.device ?? 0
  using stack = new DisposableStack()
  const source = library.bufferAlloc(COPY_BYTES, 0)
  stack.defer(() => library.bufferFree(source))
  const { memory, stream } = allocate(library, stack, device, COPY_BYTES)
  const seconds = Array.from({ length: RUNS }, () => {
    const beginMs = performance.now()
    for (let copy = 0; copy < COPIES; copy++) {
      library.copyH2d(stream, memory, 0, source, 0, COPY_BYTES)
    }
    library.streamSync(stream, 0, WAIT_MS)
    return (performance.now() - beginMs) / 1000
  }).sort((a, b) => a - b)
  return (COPIES * COPY_BYTES) / (seconds[RUNS >> 1] as number) / 1e9
}
