import { CkptError, DTYPES, type MemoryBufferMetaList, type Metas, torchView } from '@ckpt/core'
import type { HeldVersion } from '../types.ts'

/** Addresses of owners that this program can read; 0.4.2's are Mooncake's `host:port`. */
export const ADDRESS_SCHEME = 'ckpt://'

/** `_ALIGN_SIZE` of checkpoint-engine 0.4.2: tensors of one memory buffer lie this aligned, one after another. */
const ALIGNMENT = 256

type MemoryMetas = MemoryBufferMetaList['memory_buffer_metas_list'][number]

/** Of each owner of a version, in order. */
export interface MetaOwner {
  readonly rank: number
  readonly version: string | null
  readonly layoutDigest: string
}

/**
 * Where the tensors lie, as checkpoint-engine 0.4.2 writes it (`MemoryBufferMetaList` of its data_types.py). `ptr` is the
 * offset in the owner's source space, not an address: only this program reads it. `p2p_store_addr` is null, because this
 * daemon serves no remote reads of strangers.
 *
 * @param cluster where the cluster can be joined whose daemons hold it; null: nowhere
 */
export function makeMetas(
  version: HeldVersion,
  owners: readonly MetaOwner[],
  cluster: string | null = null,
): Metas {
  const metas: Metas = {}
  for (const [index, told] of owners.entries()) {
    const list = memoryMetas(version, index)
    if (list.length === 0) continue
    const owner: MemoryBufferMetaList & Record<string, unknown> = {
      memory_buffer_metas_list: list,
      p2p_store_addr: null,
      rdma_device: '',
      checkpoint: version.name,
      version: told.version,
      layout_digest: told.layoutDigest,
      ...(cluster === null ? {} : { cluster }),
    }
    metas[`${told.rank}`] = owner
  }
  return metas
}

/** Runs of tensors that follow each other at their aligned sizes, as the reader of metas adds them up. */
function memoryMetas({ table }: HeldVersion, owner: number): MemoryMetas[] {
  const rows = [...table.names.keys()]
    .filter((row) => table.owners[row] === owner)
    .sort((a, b) => table.offsets[a]! - table.offsets[b]!)
  const runs: MemoryMetas[] = []
  let end = -1
  for (const row of rows) {
    const offset = table.offsets[row]!
    const alignedBytes = Math.ceil(table.bytes[row]! / ALIGNMENT) * ALIGNMENT
    if (offset !== end) runs.push({ metas: [], ptr: offset, size: 0 })
    const run = runs[runs.length - 1]!
    run.metas.push({ ...describeTensor(tensorOf(table, row)), aligned_size: alignedBytes })
    run.size += alignedBytes
    end = offset + alignedBytes
  }
  return runs
}

function tensorOf(table: HeldVersion['table'], row: number) {
  return { name: table.names[row]!, dtype: table.dtypes[row]!, shape: table.shapes[row]! }
}

function describeTensor(tensor: { name: string; dtype: number; shape: readonly number[] }) {
  const torch = torchView(tensor.dtype, tensor.shape)
  return {
    name: tensor.name,
    dtype: torch === null ? DTYPES[tensor.dtype]!.name : `torch.${torch.torch}`,
    shape: [...(torch?.shape ?? tensor.shape)],
  }
}

/** @throws CkptError `not_supported` naming the owners that only Mooncake can read */
export function requireReadable(metas: Metas): void {
  for (const [rank, { p2p_store_addr: address }] of Object.entries(metas)) {
    if (address === null || address.startsWith(ADDRESS_SCHEME)) continue
    throw new CkptError(
      'not_supported',
      `metas of rank ${rank} are at '${address}', which only Mooncake can read; accepted are metas that ` +
        `this program has saved (no address, or '${ADDRESS_SCHEME}...')`,
      { rank: Number(rank) },
    )
  }
}
