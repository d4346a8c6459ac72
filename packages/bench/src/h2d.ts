import { selectDevices } from '@ckpt/cuda'
import { type Bench, COPY_BYTES_LEAST, sizeName } from './bench.ts'
import { allocate, SourceBytes, spoil, WAIT_MS } from './device-bytes.ts'
import { measureRow } from './row.ts'

/** One copy out of pinned host memory into device memory, until the stream has done it. */
export const h2d: Bench = {
  name: 'h2d',
  bytesLeast: COPY_BYTES_LEAST,
  async *rows({ devices, sizes, dir, open }) {
    const { library: options, ranks } = selectDevices(devices, null)
    const library = open(options)
    const device = ranks[0]?.device ?? 0
    for (const bytes of sizes) {
      using stack = new DisposableStack()
      const source = new SourceBytes(library, stack, dir, bytes)
      const { memory, stream } = allocate(library, stack, device, bytes)
      yield await measureRow(
        { bench: 'h2d', case: sizeName(bytes), bytes },
        {
          prepare: () => spoil(library, memory, bytes),
          run: () => {
            library.copyH2d(stream, memory, 0, source.buffer, 0, bytes)
            library.streamSync(stream, 0, WAIT_MS)
          },
          check: () => source.compare(library, [memory]),
        },
      )
    }
  },
}
