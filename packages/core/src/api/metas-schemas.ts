import { scope } from 'arktype'
import { Count, DtypeName, Shape, TENSORS_MAX, TensorName } from './bounds.ts'

const metasScope = scope({
  rank: /^(0|[1-9]\d{0,5})$/,
  parameter: { name: TensorName, dtype: DtypeName, shape: Shape, aligned_size: Count },
  memory: {
    metas: `parameter[] <= ${TENSORS_MAX}`,
    /** Address in the owner's process. */
    ptr: Count,
    size: Count,
  },
  owner: {
    memory_buffer_metas_list: 'memory[]',
    p2p_store_addr: 'string | null',
    rdma_device: 'string',
  },
  metas: { '+': 'reject', '[rank]': 'owner' },
}).export()

export const MemoryBufferMetaList = metasScope.owner
export type MemoryBufferMetaList = typeof MemoryBufferMetaList.infer

/**
 * `GET` and `POST /v1/metas`: per owner rank where its tensors lie, the JSON of checkpoint-engine
 * 0.4.2's `dict[int, MemoryBufferMetaList]`. Owners may carry more fields.
 */
export const Metas = metasScope.metas
export type Metas = typeof Metas.infer
