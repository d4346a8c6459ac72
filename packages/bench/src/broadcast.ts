import { type Library, selectDevices } from '@ckpt/cuda'
import { type Bench, COPY_BYTES_LEAST, MIB, sizeName } from './bench.ts'
import { atLeast } from './claims.ts'
import { allocate, type DeviceBytes, joinGroup, SourceBytes, spoil } from './device-bytes.ts'
import { median, type Timed } from './measure.ts'
import { measureRow, percentOfLimit, type Row, type RowHead } from './row.ts'
import { finish } from './streams.ts'

const RANKS = [2, 4] as const
const ROOT = 0
/** A broadcast's busbw is its algbw: every byte leaves the root once (PERFORMANCE.md of nccl-tests). */
const BUS_FACTOR = 1

/** Percent of plain copies into as many memories at once: the members wait for the root, and it for all of them. */
const SHARE_LEAST = 80
const CLAIMED_BYTES_LEAST = 64 * MIB

/**
 * Device memory of rank 0 into that of every rank, until all streams have done it. Where ranks share a device the limit is as many
 * plain copies of it at once, timed between the runs.
 */
export const broadcast: Bench = {
  name: 'broadcast',
  bytesLeast: COPY_BYTES_LEAST,
  async *rows({ devices, sizes, dir, open }) {
    for (const count of RANKS) {
      const { library: options, ranks } = selectDevices(devices, count)
      const library = open(options)
      for (const bytes of sizes) {
        using stack = new DisposableStack()
        const source = new SourceBytes(library, stack, dir, bytes)
        const members = ranks.map(({ device }) => allocate(library, stack, device, bytes))
        const timed = broadcasts(library, stack, members, source)
        const name = `${count} ranks, ${sizeName(bytes)}`
        const head = { bench: 'broadcast', case: name, bytes, busFactor: BUS_FACTOR }
        const shared = ranks.every(({ device }) => device === ranks[0]?.device)
        yield await (shared ? withPlain(library, members, head, timed) : measureRow(head, timed))
      }
    }
  },
}

function broadcasts(
  library: Library,
  stack: DisposableStack,
  members: readonly DeviceBytes[],
  source: SourceBytes,
): Timed {
  const { bytes } = source
  const root = members[ROOT]
  if (root === undefined) throw new Error('a broadcast has a root')
  library.copyH2d(root.stream, root.memory, 0, source.buffer, 0, bytes)
  finish(library, [root])
  const group = joinGroup(library, stack, members)
  return {
    prepare: () => {
      for (const { memory } of members) if (memory !== root.memory) spoil(library, memory, bytes)
    },
    run: () => {
      for (const member of members.keys()) library.groupBroadcast(group, member, ROOT, 0, bytes)
      finish(library, members)
    },
    check: () =>
      source.compare(
        library,
        members.map(({ memory }) => memory),
      ),
  }
}

/** Claims are made of sizes whose copies take longer than what is beside them. */
async function withPlain(
  library: Library,
  members: readonly DeviceBytes[],
  head: RowHead & { readonly bytes: number },
  timed: Timed,
): Promise<Row> {
  const { bytes } = head
  const [root, ...others] = members
  if (root === undefined) throw new Error('a broadcast has a root')
  const piece = [{ dstOffset: 0, srcOffset: 0, bytes }]
  const plainSeconds: number[] = []
  const prepare = async () => {
    const beginMs = performance.now()
    for (const { stream, memory } of others) library.copyDevice(stream, memory, root.memory, piece)
    finish(library, others)
    plainSeconds.push((performance.now() - beginMs) / 1000)
    await timed.prepare?.()
  }
  const measured = await measureRow(head, { ...timed, prepare })
  const row = { ...measured, limit_gb_per_s: bytes / median(plainSeconds) / 1e9 }
  if (bytes < CLAIMED_BYTES_LEAST) return row
  const what = `broadcast ${head.case}: of plain copies to as many`
  return { ...row, claims: [atLeast(what, percentOfLimit(row) ?? Number.NaN, SHARE_LEAST, '%')] }
}
